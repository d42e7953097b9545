"""The job's time limit: training stops in time to save, and no evaluation is begun that would not end."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dist_trainer.adapters.place import Place
from dist_trainer.errors import NoProgress
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.hooks import Hook
from dist_trainer.training.saves import Saves
from dist_trainer.training.stop import Agreed, Stop
from dist_trainer.training.time_limit import EVALUATION_SHARE, MARGIN_S, SAVE_SHARE, TimeLimit
from dist_trainer.training.trainer import Result, Scheduler, Trainer
from tests.ranks import RankFailed, run_ranks
from tests.training.recipes import Slow, train, weights_digest
from tests.training.slow import SlowAccuracy
from tests.training.small import Watch, net, rows, sgd, trainer

pytestmark = pytest.mark.timeout(180)


class Clock:
    """A limit on its own, in a run folder of its own; `left_s` are the seconds to the job's end."""

    def __init__(self, folder: Path, left_s: float | None, *, job: str | None = None, **place: Any) -> None:
        end = None if left_s is None else time.time() + left_s
        self.saves = SimpleNamespace(longest_s=0.0, is_busy=False)
        folder.mkdir(exist_ok=True)
        group = SimpleNamespace(
            place=Place(0, 1, 0, 1, True, 1, "n1", job, 0, end, **place),
            world_size=1,
            from_rank_zero=lambda produce: produce(),
        )
        attempt = SimpleNamespace(run=RunFolder(folder), group=group, is_rank_zero=True)
        self.limit = TimeLimit(cast(Attempt, attempt), cast(Saves, self.saves))
        self.warmed_up = False

    def trained(self, step_s: float) -> None:
        for seconds in (0.0, step_s) if self.warmed_up else (0.0, 10**6, step_s):
            self.limit.trained(Agreed(Stop.NONE, False, 1, 0, seconds, seconds))
        self.warmed_up = True


def test_training_stops_with_the_time_to_end_a_step_and_to_save(tmp_path: Path) -> None:
    for number, (left_s, saving) in enumerate([(30.0, False), (22.0, False), (30.0, True)]):
        clock = Clock(tmp_path / str(number), left_s)
        clock.trained(2.0)
        clock.trained(0.1)
        clock.saves.longest_s, clock.saves.is_busy = 10.0, saving
        needed_s = SAVE_SHARE * 10 * (2 if saving else 1) + 2 * 2.0 + MARGIN_S
        assert clock.limit.asked() is (Stop.TIME_LIMIT if left_s < needed_s else Stop.NONE)


def test_training_stops_when_slurm_would_send_its_signal(tmp_path: Path) -> None:
    assert Clock(tmp_path, 65, signal_before_s=60.0).limit.asked() is Stop.NONE
    assert Clock(tmp_path, 59, signal_before_s=60.0).limit.asked() is Stop.TIME_LIMIT


def test_once_it_is_time_it_stays_so(tmp_path: Path) -> None:
    clock = Clock(tmp_path, 20)
    clock.saves.longest_s, clock.saves.is_busy = 6.0, True
    assert clock.limit.asked() is Stop.TIME_LIMIT
    clock.saves.is_busy = False
    assert clock.limit.asked() is Stop.TIME_LIMIT


@pytest.mark.parametrize("left_s", [None, -5.0])  # a job may be let go on after its end
def test_without_an_end_ahead_nothing_is_refused(left_s: float | None, tmp_path: Path) -> None:
    clock = Clock(tmp_path, left_s)
    clock.trained(1000.0)
    assert clock.limit.asked() is Stop.NONE
    assert clock.limit.may_evaluate("val", in_steps=1000)
    clock.limit.keep()
    assert not (tmp_path / "times.json").exists()


def test_an_evaluation_is_expected_to_take_what_it_took_or_as_its_rows_in_training(tmp_path: Path) -> None:
    clock = Clock(tmp_path, 100 + MARGIN_S)
    assert clock.limit.may_evaluate("val", in_steps=10**6), "nothing is known yet, and nothing was done"
    clock.trained(1.0)
    assert clock.limit.may_evaluate("val", in_steps=150)
    assert not clock.limit.may_evaluate("val", in_steps=200)
    clock.limit.evaluated("val", 98 / EVALUATION_SHARE, whole=True)
    assert not clock.limit.may_evaluate("val", in_steps=1), "two steps more have to fit"
    clock.limit.evaluated("test", 90 / EVALUATION_SHARE, whole=True)
    assert clock.limit.may_evaluate("test", in_steps=10**6)
    clock.limit.evaluated("other", 90, whole=False)
    assert not clock.limit.may_evaluate("other", in_steps=1), "longer than when it was cut off"


def test_times_are_kept_for_the_next_attempt_at_any_world_size(tmp_path: Path) -> None:
    clock = Clock(tmp_path, 1000)
    clock.trained(4.0)
    clock.saves.longest_s = 3.0
    clock.limit.evaluated("val", 200.0, whole=True)
    times = json.loads((tmp_path / "times.json").read_text())
    assert (times["step_s"], times["save_s"], times["evaluation_s"]) == (4.0, 3.0, {"val": 200.0})
    (tmp_path / "times.json").write_text(json.dumps({**times, "world_size": 4}))
    later = Clock(tmp_path, 800)
    later.trained(1.0)
    assert not later.limit.may_evaluate("val", in_steps=1), "a quarter of the ranks take four times as long"
    shorter = Clock(tmp_path, 100)
    shorter.trained(1.0)
    shorter.limit.evaluated("val", 1.0, whole=True)
    assert shorter.limit.may_evaluate("val", in_steps=1), "what an earlier attempt measured is corrected"


def test_what_can_never_end_is_begun_once_in_each_job_and_then_refused(tmp_path: Path) -> None:
    first = Clock(tmp_path, 100)
    assert first.limit.may_evaluate("val", in_steps=1)
    first.limit.evaluated("val", 60.0, whole=False)
    fresh = Clock(tmp_path, 100)
    assert fresh.limit.may_evaluate("val", in_steps=1), "this job gives it more time"
    fresh.limit.evaluated("val", 90.0, whole=False)
    with pytest.raises(NoProgress, match=r"evaluation of val did not end within 90 s, .*leaves it 9\d s"):
        Clock(tmp_path, 100).limit.may_evaluate("val", in_steps=1)
    assert Clock(tmp_path, 200).limit.may_evaluate("val", in_steps=1), "a longer limit"


def test_workers_restarted_within_a_job_do_not_have_its_whole_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    Clock(tmp_path, 1000).limit.evaluated("val", 900.0, whole=True)
    run.record({"event": "start", "attempt": 1, "job": "7", "restart": 0, "first_step": 0})
    assert Clock(tmp_path, 100, job="7").limit.may_evaluate("val", in_steps=1)
    run.record({"event": "start", "attempt": 2, "job": "7", "restart": 0, "first_step": 0})
    assert not Clock(tmp_path, 100, job="7").limit.may_evaluate("val", in_steps=1)


class EndsSoon(Hook):
    """The job ends so many seconds after an attempt's first step: a busy machine may take long to come to it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = 0.0

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if not self.end:
            self.end = time.time() + self.seconds
            if trainer.limit._end is not None:
                trainer.limit._end = self.end


def train_within(folder: str, seconds: float | None, options: dict[str, Any]) -> tuple[Result, float]:
    """Only rank 0 knows the job's end."""
    if seconds is None:
        return train(folder, options, (Slow(0.08),)), 0.0
    if os.environ["RANK"] == "0":
        os.environ["DIST_TRAINER_JOB_END"] = str(time.time() + 1000)
    ending = EndsSoon(seconds)
    return train(folder, options, (ending, Slow(0.08))), ending.end


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_over_several_time_limits_is_the_untouched_one(ranks: int, tmp_path: Path) -> None:
    for name in ("untouched", "limited"):
        (tmp_path / name).mkdir()
    options = {"train.epochs": 8, "checkpoint.every_steps": 1000}
    run_ranks(ranks, train_within, str(tmp_path / "untouched"), None, options)
    run = RunFolder(tmp_path / "limited" / "runs" / "run")
    for attempt in range(1, 30):
        results = run_ranks(ranks, train_within, str(tmp_path / "limited"), MARGIN_S + 2.5, options)
        assert len({(each.step, each.state, each.reason) for each, _ in results}) == 1
        result, end = results[0]
        status = run.read_status()
        assert status.run_again is (result.state == "stopped")
        if result.state == "finished":
            break
        assert (result.reason, status.reason) == ("time limit", "time limit")
        newest = max(run.checkpoints.glob(f"*-f{attempt:04d}/COMMIT.json"))
        assert newest.stat().st_mtime < end
    causes = [line["cause"] for line in run.attempts() if line["event"] == "end"]
    assert len(causes) > 2 and causes == ["time limit"] * (len(causes) - 1) + ["finished"]
    assert weights_digest(tmp_path / "limited") == weights_digest(tmp_path / "untouched")


def train_measured(folder: str, seconds: float | None) -> tuple[Result, float, list[str]]:
    """The result, the last rate, and which evaluated steps and saved checkpoints there are."""
    if seconds:
        os.environ["DIST_TRAINER_JOB_END"] = str(time.time() + seconds)
    watch = Watch()
    fit = trainer(
        folder,
        "run",
        {
            "train.epochs": 4,
            "data.global_batch_size": 8,
            "data.eval_batch_size": 2,
            "train.early_stopping": {"metric": "val/loss", "patience": 3},
            "checkpoint.keep_best": {"metric": "val/loss"},
        },
        model=net(),
        val=rows(12),
        test=rows(8),
        metrics={"accuracy": SlowAccuracy(Path(folder))},
        optimizer=lambda model: sgd(model),
        scheduler=Scheduler(
            lambda each, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(each, patience=0, threshold=0.05),
            metric="val/loss",
        ),
        hooks=[watch],
    )
    result = fit.fit()
    assert not seconds or time.time() < float(os.environ["DIST_TRAINER_JOB_END"]), (
        "the job's end comes after its own"
    )
    rate = fit.parts.train_step.optimizers["main"].param_groups[0]["lr"]
    store = Path(folder) / "run" / "checkpoints"
    saved = sorted({path.parent.name[:14] for path in store.glob("*/COMMIT.json")})
    return result, rate, [*saved, *(f"evaluated {each['step']}" for each in watch.evaluations)]


def expect(folder: Path, split: str, seconds: float) -> None:
    (folder / "times.json").write_text(json.dumps({"world_size": 2, "evaluation_s": {split: seconds}}))


@pytest.mark.parametrize(("split", "step"), [("val", 3), ("test", 12)])
def test_an_evaluation_that_would_not_end_is_the_first_thing_of_the_next_job(
    split: str, step: int, tmp_path: Path
) -> None:
    untouched = run_ranks(2, train_measured, str(tmp_path / "untouched"), None)
    (tmp_path / "limited" / "run").mkdir(parents=True)
    expect(tmp_path / "limited" / "run", split, 1000)
    folder = str(tmp_path / "limited")
    stopped = run_ranks(2, train_measured, folder, 60)
    assert {(each[0].state, each[0].reason, each[0].step) for each in stopped} == {
        ("stopped", "time limit", step)
    }
    assert f"evaluated {step}" not in stopped[0][2] or split == "test"
    expect(tmp_path / "limited" / "run", split, 1000)
    resumed = run_ranks(2, train_measured, folder, 60)
    for now, then in zip(resumed, untouched, strict=True):
        assert now[:2] == then[:2]
        assert [line for line in now[2] if "step" in line] == [line for line in then[2] if "step" in line]
    evaluated = [line for _, _, lines in (stopped[0], resumed[0]) for line in lines if "evaluated" in line]
    assert evaluated == [line for line in untouched[0][2] if "evaluated" in line], "each once"
    measured = json.loads((tmp_path / "limited" / "run" / "times.json").read_text())["evaluation_s"]
    assert measured[split] < 10, "what was expected is corrected"


def test_an_evaluation_that_no_job_has_time_for_ends_with_an_error_that_says_so(tmp_path: Path) -> None:
    untouched = run_ranks(2, train_measured, str(tmp_path / "untouched"), None)
    folder = tmp_path / "limited"
    folder.mkdir()
    (folder / "slow-evaluation").write_text("1.5")  # three batches
    attempts = 0
    with pytest.raises(RankFailed, match="NoProgress: the evaluation of val did not end within"):
        for attempts in range(5):  # noqa: B007
            (result, *_), _ = run_ranks(2, train_measured, str(folder), MARGIN_S + 3)
            assert (result.state, result.reason, result.step) == ("stopped", "time limit", 3)
    assert attempts <= 3, "it is not begun again and again"
    resumed = run_ranks(2, train_measured, str(folder), 120)
    assert [each[:2] for each in resumed] == [each[:2] for each in untouched]
