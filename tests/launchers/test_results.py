"""What is said at the end of a training that did not finish."""

import io

import pytest
from rich.console import Console

from dist_trainer.config.schema import Config
from dist_trainer.launchers.results import Ending, show_results
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import Journal, last_saved_step

CONFIG = Config.model_validate(
    {
        "name": "test",
        "model": {"target": "torch.nn.Identity"},
        "loss": {"target": "torch.nn.MSELoss"},
        "data": {"train": {"target": "builtins.list"}},
        "optimizer": {"target": "torch.optim.SGD"},
    }
)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (None, "stopped; nothing was saved yet; the same command starts from the beginning"),
        (0, "stopped before the first step; the same command goes on from there"),
        (7, "stopped; saved at step 7; the same command goes on from there"),
    ],
)
def test_a_stop_says_what_is_saved(run: RunFolder, step: int | None, said: str) -> None:
    out = io.StringIO()
    show_results(Ending(run, CONFIG, "stopped", 75, step), Console(file=out))
    assert out.getvalue() == f"{said}\n"


def test_what_is_saved_is_the_newest_commit_or_what_the_attempt_went_on_from(run: RunFolder) -> None:
    path = run.journal_path(0)
    assert last_saved_step(path) is None
    with Journal(path, attempt=1, rank=0) as journal:
        journal.event("started", first_step=0, total_steps=90)
        journal.metrics(30, {"train/loss": 1.0})
        journal.sync()
        assert last_saved_step(path) is None
        journal.event("saved", step=10, checkpoint="step-000000010-f0001")
        journal.event("saved", step=20, checkpoint="step-000000020-f0001")
    assert last_saved_step(path) == 20
    with Journal(path, attempt=2, rank=0) as journal:
        journal.event("started", first_step=10, total_steps=90)  # the newer one was bad
    assert last_saved_step(path) == 10
