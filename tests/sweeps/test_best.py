"""Which cell is the best: by the kept checkpoint or the last one, with ties, NaN and nothing measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.adapters.files import plain_number
from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.config.schema import BestConfig
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import Status
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder
from dist_trainer.sweeps.best import best, metric_by
from dist_trainer.sweeps.plan import freeze
from dist_trainer.sweeps.sweep import status
from dist_trainer.tracking.journal import Journal

CONFIG = """
name: small
model: {target: torch.nn.Linear, in_features: 2, out_features: 1}
data:
  train: {target: torch.utils.data.TensorDataset}
  val: {target: torch.utils.data.TensorDataset}
loss: {target: torch.nn.MSELoss}
metrics: {accuracy: {target: dist_trainer.training.metrics.Accuracy}}
optimizer: {target: torch.optim.SGD, lr: 0.1}
tracking: {uri: null}
"""
KEEP = "checkpoint.keep_best={metric: val/accuracy, mode: max}"
Histories = dict[int, dict[str, float]]  # step -> metrics, a checkpoint with each
Make = Callable[..., SweepFolder]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A finished sweep whose cells have measured this."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)

    def begin(*cells: Histories, settings: tuple[str, ...] = ()) -> SweepFolder:
        text = dump_config(load_config(["small.yaml"], settings).config)
        table = [Cell(index, {"seed": index}, f"small-{index:04d}", text) for index in range(len(cells))]
        folder = freeze(Sweep("small", str(tmp_path), {"seed": f"0:{len(cells)}"}, table), "runs")
        for cell, history in zip(table, cells, strict=True):
            pretend(folder, cell, history)
        return folder

    return begin


def pretend(folder: SweepFolder, cell: Cell, history: Histories) -> None:
    run = folder.run_of(cell)
    fence = run.new_fence({})
    store = CheckpointStore(Storage(str(run.checkpoints)), fence=fence, highest_fence=run.highest_fence)
    with Journal(run.journal_path(0), attempt=fence, rank=0) as journal:
        journal.event("started", total_steps=max(history, default=0), first_step=0)
        for step, metrics in history.items():
            journal.metrics(step, metrics)
            info = {"metrics": {name: plain_number(value) for name, value in metrics.items()}}
            store.commit(step, {"training.json": b"{}"}, info)
    run.write_status(Status("finished" if history else "failed", step=max(history, default=None)))


def table(folder: SweepFolder, capsys: pytest.CaptureFixture[str], metric: BestConfig | None = None) -> Any:
    assert best(folder, metric or metric_by(folder, None, None), as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def test_without_keep_best_the_last_value_counts_and_ties_are_in_the_order_of_the_grid(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(
        {10: {"val/loss": 0.1}, 20: {"val/loss": 0.5}},
        {10: {"val/loss": 0.9}, 20: {"val/loss": 0.3}},
        {20: {"val/loss": 0.3}},
    )
    found = table(folder, capsys)
    assert (found["metric"], found["mode"]) == ("val/loss", "min")
    assert [(row["index"], row["value"]) for row in found["cells"]] == [(1, 0.3), (2, 0.3), (0, 0.5)]
    assert found["cells"][0]["evaluate"] == "dist-trainer evaluate small-0001 --checkpoint last"
    assert found["cells"][0]["checkpoint_step"] == 20


def test_with_keep_best_its_checkpoint_counts(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        {10: {"val/accuracy": 0.9}, 20: {"val/accuracy": 0.2}},
        {10: {"val/accuracy": 0.5}, 20: {"val/accuracy": 0.6}},
        settings=(KEEP,),
    )
    found = table(folder, capsys)
    assert (found["metric"], found["mode"]) == ("val/accuracy", "max")
    first = found["cells"][0]
    assert (first["index"], first["value"], first["checkpoint_step"]) == (0, 0.9, 10)
    assert first["evaluate"] == "dist-trainer evaluate small-0000 --checkpoint best"
    assert Path(first["checkpoint"]).name == "step-000000010-f0001"


def test_nan_and_what_was_not_measured_come_last(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    folder = make({}, {10: {"val/loss": nan}}, {10: {"val/loss": 7.0}}, {10: {"val/loss": float("inf")}})
    found = table(folder, capsys)
    assert [(row["index"], row["value"]) for row in found["cells"]] == [
        (2, 7.0),
        (3, "inf"),
        (1, "nan"),
        (0, None),
    ]
    assert found["cells"][-1]["checkpoint"] is None


def test_the_best_is_shown_with_how_to_go_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make({10: {"val/loss": 0.5}}, {})
    assert best(folder, metric_by(folder, None, None), as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["cell", "seed", "val/loss", "checkpoint", "state"]
    assert lines[1].split() == ["0", "0", "0.5", "last,", "step", "10", "finished"]
    assert lines[2].split() == ["1", "1", "-", "-", "failed"]
    assert lines[3:] == [
        "best        small-0000 (seed=0): val/loss 0.5",
        f"checkpoint  {folder.path.parent}/small-0000/checkpoints/step-000000010-f0001",
        "evaluate    dist-trainer evaluate small-0000 --checkpoint last",
        "1 of 2 cells are not finished",
    ]


def test_a_metric_that_nobody_measured_and_one_without_a_direction_are_refused(make: Make) -> None:
    folder = make({10: {"val/loss": 0.5, "train/loss": 0.1}})
    with pytest.raises(UsageError, match="--metric val/accuracy: give --mode max where more of it is better"):
        metric_by(folder, "val/accuracy", None)
    with pytest.raises(UsageError, match="no cell has measured val/los; did you mean val/loss"):
        best(folder, metric_by(folder, "val/los", "min"), as_json=False)
    with pytest.raises(UsageError, match="no cell has measured test/top5; there is val/loss"):
        best(folder, metric_by(folder, "test/top5", "max"), as_json=False)
    with pytest.raises(UsageError, match="none has measured anything yet"):
        best(make_empty(folder), BestConfig(), as_json=False)


def make_empty(folder: SweepFolder) -> SweepFolder:
    sweep = folder.sweep
    cell = Cell(0, {}, "empty-0000", sweep.cells[0].config)
    return freeze(Sweep("empty", sweep.working_folder, {}, [cell]), folder.path.parent)


def test_status_fits_eighty_columns_and_says_what_is_wrong(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = make({10: {"val/loss": 0.5}}, {}, {20: {"val/loss": 1 / 3}})
    folder.run_of(folder.cell(1)).write_status(Status("failed", "rank 0 failed: ValueError: no\nmore of it"))
    assert status(folder, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["cell", "seed", "state", "step", "val/loss"],
        ["0", "0", "finished", "10/10", "0.5"],
        ["1", "1", "failed", "-", "-"],
        ["2", "2", "finished", "20/20", "0.3333"],
    ]
    assert lines[4:] == [
        "cell 1: rank 0 failed: ValueError: no",
        "3 cells: 2 finished, 1 failed",
        "to run what is missing: dist-trainer sweep resume small",
    ]
    assert max(map(len, lines)) <= 80
