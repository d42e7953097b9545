"""The loop: hooks, lengths, the journal, checkpoints' metrics, and going on after any end."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from dist_trainer.errors import NoProgress
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.hooks import Hook
from dist_trainer.training.saves import has_saved, refuse_standstill
from dist_trainer.training.trainer import Scheduler, Trainer
from tests.ranks import run_ranks
from tests.training.small import Watch, journal, message_of, net, rows, sgd, trainer, vector

pytestmark = pytest.mark.timeout(120)


def train_with_everything(folder: str) -> dict[str, Any]:
    watch, model = Watch(), net()
    fit = trainer(
        folder,
        "all",
        {
            "train.epochs": 4,
            "data.global_batch_size": 6,
            "checkpoint.every_steps": 3,
            "checkpoint.keep_last": 20,
            "checkpoint.keep_best": {"metric": "val/loss"},
            "train.profile": {"steps": [1, 2]},
        },
        model=model,
        val=rows(9),
        test=rows(5),
        optimizer=sgd(model),
        scheduler=Scheduler(
            lambda each, steps: torch.optim.lr_scheduler.PolynomialLR(each, steps), warmup_steps=2
        ),
        hooks=[watch],
    )
    result = fit.fit()
    again = fit.fit()
    return {"result": result, "again": again, "watch": watch, "weights": vector(model)}


def test_a_run_is_told_whole(tmp_path: Path) -> None:
    results = run_ranks(2, train_with_everything, str(tmp_path))
    found = results[0]
    result, watch = found["result"], found["watch"]
    assert (result.state, result.step, watch.ended) == ("finished", 16, "finished")
    assert set(result.metrics) == {"val/loss", "test/loss"}
    assert [each["step"] for each in watch.evaluations] == [4, 8, 12, 16]
    assert len(watch.steps) == 16
    assert found["again"] == result, "a finished run goes nowhere"

    run = RunFolder.open(tmp_path / "all")
    lines = journal(tmp_path, "all")
    rates = {
        line["step"]: line["values"]["learning_rate"]
        for line in lines
        if line["kind"] == "metrics" and "learning_rate" in line["values"]
    }
    assert rates[1] == pytest.approx(0.05), "the rate that the step was made with"
    assert rates[3] == pytest.approx(0.1)
    assert list(rates) == list(range(1, 17))
    started = [line for line in lines if line["kind"] == "started"]
    assert (started[0]["total_steps"], started[0]["steps_per_epoch"]) == (16, 4)
    assert [line["first_step"] for line in started] == [0, 16]
    assert [line["cause"] for line in run.attempts() if line["event"] == "end"] == ["finished"] * 2
    assert run.read_status().results == pytest.approx(result.metrics)
    assert all((tmp_path / "all" / "profile" / f"rank-{rank}.json").exists() for rank in (0, 1))

    commits = sorted((tmp_path / "all" / "checkpoints").glob("*/MANIFEST.json"))
    about = {path.parent.name: json.loads(path.read_text())["info"]["metrics"] for path in commits}
    values = {each["step"]: each["val/loss"] for each in watch.evaluations}
    for name, metrics in about.items():
        step = int(name[5:14])
        assert metrics == ({"val/loss": values[step]} if step in values else {}), name
    best = min(values, key=lambda step: values[step])
    assert f"step-{best:09d}-f0001" in about
    assert not any(name.endswith("f0002") for name in about), "nothing new was saved for a finished run"


def train_in_two_parts(folder: str) -> dict[str, Any]:
    found = {}
    for name, lengths in {"whole": [12], "parts": [5, 12]}.items():
        for steps in lengths:
            model = net()
            fit = trainer(
                folder,
                name,
                {"train.steps": steps, "data.global_batch_size": 6},
                model=model,
                optimizer=sgd(model),
            )
            result = fit.fit()
            assert (result.state, result.step) == ("finished", steps)
        found[name] = vector(model)
    return found


def test_more_steps_go_on_where_a_finished_run_ended(tmp_path: Path) -> None:
    for found in run_ranks(2, train_in_two_parts, str(tmp_path)):
        assert torch.equal(found["whole"], found["parts"])


@pytest.mark.parametrize(
    ("settings", "last"),
    [({"train.steps": 4}, 4), ({"train.steps": 30, "train.early_stopping": {"patience": 1}}, 2)],
    ids=["all-steps", "early-stopping"],
)
def test_a_script_whose_run_is_finished_is_told_so(
    settings: dict[str, Any], last: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings |= {"data.global_batch_size": 6, "train.eval_every_steps": 1}
    never_better = lambda model: torch.optim.SGD(model.parameters(), lr=0.0)  # noqa: E731
    given = {"val": rows(5), "optimizer": never_better}
    results = [trainer(str(tmp_path), "r", settings, **given).fit() for _ in range(2)]
    assert results[0] == results[1] and results[0].step == last
    first, second = capsys.readouterr().out.split(f"r: finished at step {last}\n")[:2]
    assert f"r: training {settings['train.steps']} steps, world size 1" in first
    assert second == f"r: its training was finished at step {last} already, in {tmp_path / 'r'}\n"


def train_alone_after_a_failure(folder: str) -> list[str]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name)
    model = net()
    broken = trainer(folder, "alone", model=model, loss=lambda output, target: output.sum() * torch.nan)
    failed = message_of(broken.fit)
    loss = nn.CrossEntropyLoss()
    first = trainer(folder, "first", model=net(), loss=loss).fit().state
    second = trainer(
        folder, "second", model=net(), loss=loss, val=rows(5), settings={"train.early_stopping": {}}
    )
    return [failed, first, second.fit().state, loss.reduction]


def test_a_process_of_its_own_may_try_again_after_a_failure(tmp_path: Path) -> None:
    failed, first, second, reduction = run_ranks(1, train_alone_after_a_failure, str(tmp_path))[0]
    assert failed.startswith("NonFiniteError: step 1: ")
    assert (first, second, reduction) == ("finished", "finished", "mean")


class FailsOnce(Hook):
    """A mistake of the user's, mended afterwards."""

    def __init__(self) -> None:
        self.is_mended = False

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step == 3 and not self.is_mended:
            raise KeyError("a hook's mistake")


def fail_and_go_on(folder: str) -> dict[str, Any]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name)
    hook, run = FailsOnce(), RunFolder(Path(folder) / "run")
    settings = {"data.num_workers": 2, "checkpoint.every_steps": 2, "train.steps": 6}
    fit = trainer(folder, "run", settings, hooks=[hook], val=rows(6))
    failed = message_of(fit.fit)
    found = {"failed": failed, "children": multiprocessing.active_children(), "status": run.read_status()}
    hook.is_mended = True
    return {**found, "result": fit.fit(), "attempts": run.attempts(), "end": run.read_status().state}


def test_a_fit_that_failed_leaves_nothing_behind_and_may_be_called_again(tmp_path: Path) -> None:
    (found,) = run_ranks(1, fail_and_go_on, str(tmp_path))
    assert found["failed"] == 'KeyError: "a hook\'s mistake"'
    assert found["children"] == []
    status = found["status"]
    assert (status.state, status.reason, status.step) == ("failed", '"a hook\'s mistake"', 3)
    assert (found["result"].state, found["result"].step, found["end"]) == ("finished", 6, "finished")
    lines = [(each["event"], each.get("cause"), each.get("first_step")) for each in found["attempts"]]
    assert lines == [
        ("start", None, 0),
        ("end", "failed", None),
        ("start", None, 2),
        ("end", "finished", None),
    ]


def train_until_no_better(folder: str) -> tuple[int, list[float]]:
    watch = Watch()
    result = trainer(
        folder,
        "stopping",
        {"train.epochs": 30, "data.global_batch_size": 8, "train.early_stopping": {"patience": 2}},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=3.0),
        val=rows(30, "class"),
        hooks=[watch],
    ).fit()
    return result.step, [each["val/loss"] for each in watch.evaluations]


def test_early_stopping_ends_a_run_as_finished(tmp_path: Path) -> None:
    step, losses = run_ranks(2, train_until_no_better, str(tmp_path))[0]
    assert step == 3 * len(losses) < 90
    assert min(losses[:-2]) <= min(losses[-2:])


def test_three_resumes_without_progress_are_one_too_many_unless_one_finished(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "name: run\n", working_folder=tmp_path)
    for attempt in (1, 2, 3):
        refuse_standstill(run, 40)
        run.record({"event": "start", "attempt": attempt, "first_step": 40})
    with pytest.raises(NoProgress, match="all started from the checkpoint of step 40"):
        refuse_standstill(run, 40)
    refuse_standstill(run, 41)
    run.record({"event": "end", "attempt": 3, "cause": "finished", "exit_code": 0})
    refuse_standstill(run, 40)


def test_attempts_that_do_not_say_well_where_they_began_are_no_standstill(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "name: run\n", working_folder=tmp_path)
    for attempt in (1, 2, 3):
        run.record({"event": "start", "attempt": attempt})
        run.record({"event": "start", "attempt": attempt + 3, "first_step": "40"})
    refuse_standstill(run, 40)
    assert not has_saved(run)


@pytest.mark.parametrize(
    ("cause", "counts"), [("killed", True), ("failed", True), ("SIGUSR2", False), ("node failure", False)]
)
def test_an_attempt_whose_machine_was_taken_away_is_no_lack_of_progress(
    tmp_path: Path, cause: str, counts: bool
) -> None:
    run = RunFolder.create(tmp_path / "run", "name: run\n", working_folder=tmp_path)
    for attempt in range(4):
        if counts and attempt == 3:
            with pytest.raises(NoProgress):
                refuse_standstill(run, 40)
            return
        refuse_standstill(run, 40)
        run.record({"event": "start", "attempt": attempt, "first_step": 40})
        run.record({"event": "end", "attempt": attempt, "cause": cause, "exit_code": 1})


class Broken(Dataset[Any]):
    """Rows that can be read up to one of them, and none any more after some reads."""

    def __init__(self, good: int, reads: int = 10**9) -> None:
        self.good, self.left, self.whole = good, reads, rows()

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if index >= self.good or self.left < 0:
            raise OSError("gone")
        return self.whole[index]


def skip_rows(folder: str) -> str:
    skip = {"data.bad_rows": "skip", "data.order": "sequential", "train.accumulate_steps": 2}
    assert trainer(folder, "some", skip, train=Broken(20), epochs=2).fit().state == "finished"
    gone = trainer(folder, "all", skip, train=Broken(23, reads=60), epochs=3000, global_batch_size=1)
    return message_of(gone.fit)


def test_skipped_rows_are_counted_and_nothing_but_skipped_rows_is_an_error(tmp_path: Path) -> None:
    (message,) = run_ranks(1, skip_rows, str(tmp_path))
    events = [line["skipped"] for line in journal(tmp_path, "some") if line["kind"] == "bad_rows"]
    assert sum(events) == 2 * 3
    assert "an epoch's, were all left out as bad" in message


class Pictures(nn.Module):
    """Notes the layout of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.layouts: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.layouts.add(images.is_contiguous(memory_format=torch.channels_last))
        result: Tensor = self.head(self.convolution(images).amax(dim=(2, 3)))
        return result


def train_pictures(
    folder: str, channels_last: bool, steps: tuple[int, ...]
) -> tuple[Tensor, set[bool], bool]:
    torch.manual_seed(1)
    data = TensorDataset(torch.rand(24, 3, 8, 8), torch.randint(0, 3, (24,)))
    for last in steps:
        model = Pictures()
        settings = {"train.channels_last": channels_last}
        trainer(
            folder, f"run{channels_last}{len(steps)}", settings, model=model, train=data, val=data, steps=last
        ).fit()
    weight = model.convolution.weight
    return weight.detach().clone(), model.layouts, weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.timeout(120)
def test_channels_last_is_a_layout_and_no_other_training(tmp_path: Path) -> None:
    for (usual, plain, _), (weight, layouts, of_weight), (resumed, _, _) in zip(
        run_ranks(2, train_pictures, str(tmp_path), False, (8,)),
        run_ranks(2, train_pictures, str(tmp_path), True, (8,)),
        run_ranks(2, train_pictures, str(tmp_path), True, (3, 8)),
        strict=True,
    ):
        assert plain == {False} and layouts == {True} and of_weight
        assert weight == pytest.approx(usual, abs=1e-5)
        assert torch.equal(weight, resumed)


def train_lbfgs_channels_last(folder: str) -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3))
    data = TensorDataset(torch.rand(8, 1, 2, 2, 2), torch.randint(0, 3, (8,)))
    settings = {"train.channels_last": True}
    trainer(
        folder, "run", settings, model=model, train=data, steps=2
    ).fit()  # nothing to lay out, and no error
    trainer(
        folder,
        "other",
        settings,
        model=net(),
        optimizer=lambda module: torch.optim.LBFGS(module.parameters()),
    ).fit()


def test_channels_last_is_refused_where_it_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"train\.channels_last: LBFGS takes gradients apart"):
        run_ranks(1, train_lbfgs_channels_last, str(tmp_path))
