"""Stopping: handlers set a flag, ranks agree on one step, and what was interrupted is done again."""

import os
import signal
import socket
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dist_trainer.adapters.distributed import Group, join
from dist_trainer.adapters.place import FENCE_VARIABLE
from dist_trainer.errors import STOPPED
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.metrics import Accuracy
from dist_trainer.training.stop import Agreement, Signals, Stop
from dist_trainer.training.trainer import Result, Scheduler
from tests.ranks import run_ranks
from tests.training.recipes import train, weights_digest
from tests.training.slow import SlowAccuracy
from tests.training.small import Watch, journal, net, rows, sgd, trainer

pytestmark = pytest.mark.timeout(120)


def exit_code_after(*requests: tuple[int, float], has_agent: bool = False) -> int:
    """Of a child that gets these signals, each followed by a wait, and then ends with 7 plus what it noted."""
    child = os.fork()
    if child == 0:
        if has_agent:
            os.environ[FENCE_VARIABLE] = "1"
        signals = Signals()
        for number, wait_s in requests:
            os.kill(os.getpid(), number)
            time.sleep(wait_s)
        os._exit(7 + signals.requested)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send_signals() -> list[int]:
    return [
        exit_code_after((signal.SIGUSR2, 0)),
        exit_code_after((signal.SIGINT, 0.1), (signal.SIGTERM, 0)),
        exit_code_after((signal.SIGTERM, 0.05), (signal.SIGUSR2, 0)),
        exit_code_after((signal.SIGTERM, 1.1), (signal.SIGTERM, 0)),
        # a scheduler's preemption: the second, other signal must not end a save under way
        exit_code_after((signal.SIGUSR2, 1.1), (signal.SIGTERM, 0)),
    ]


def send_signals_to_an_agents_worker() -> list[int]:
    late = ((signal.SIGTERM, 1.1), (signal.SIGCONT, 0.0), (signal.SIGTERM, 0.0))
    return [
        exit_code_after((signal.SIGUSR2, 1.1), (signal.SIGUSR2, 0), *late, has_agent=True),
        exit_code_after((signal.SIGINT, 1.1), (signal.SIGINT, 0), (signal.SIGUSR2, 0), has_agent=True),
    ]


def test_a_signal_sets_a_flag_and_a_second_request_leaves_at_once() -> None:
    (codes,) = run_ranks(1, send_signals)
    assert codes == [7 + Stop.REQUEUE, 7 + Stop.END, 7 + Stop.END, STOPPED, 7 + Stop.REQUEUE]


def test_under_our_agent_no_signal_however_often_makes_a_worker_leave() -> None:
    (codes,) = run_ranks(1, send_signals_to_an_agents_worker)
    assert codes == [7 + Stop.REQUEUE, 7 + Stop.END]


def test_what_is_asked_for_says_why_and_whether_to_run_again() -> None:
    assert {stop.name: (stop.reason, stop.run_again) for stop in Stop} == {
        "NONE": ("", False),
        "REQUEUE": ("SIGUSR2", True),
        "TIME_LIMIT": ("time limit", True),
        "END": ("SIGTERM or SIGINT", False),
    }


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    Signals().restore()
    assert signal.getsignal(signal.SIGUSR2) is before


def exchange_on_ranks() -> dict[str, Any]:
    group, signals = join("cpu", timeout_s=20), Signals()
    agreement = Agreement(group, lambda: signals.requested, first_step=10)
    heard, saves, bad = [], [], 0
    for step in range(11, 261):
        before = agreement.before_step(step - 1, save=False)
        time.sleep(0.002 + 0.002 * group.rank if step < 80 else 0.02)
        wants = group.rank == 0 and step >= 60 and not saves
        after = agreement.after_step(step, save=wants, rows=4, bad_rows=group.rank)
        for agreed in filter(None, (before, after)):
            heard.append(step)
            bad += agreed.bad_rows
            if agreed.save:
                saves.append(step)
    if group.rank == 1:
        signals.requested = Stop.REQUEUE
    last = agreement.now(261)
    group.leave()
    return {
        "heard": heard,
        "saves": saves,
        "bad": bad + last.bad_rows,
        "stop": last.stop,
        "slow": last.slowest_step_s,
    }


def test_ranks_exchange_at_the_same_steps_as_often_as_time_allows() -> None:
    results = run_ranks(3, exchange_on_ranks)
    assert all(result == results[0] for result in results)
    found = results[0]
    strides = [b - a for a, b in pairwise(found["heard"])]
    assert found["heard"][:2] == [11, 12], "each step begins with an exchange until one was measured"
    assert max(strides) > 15
    assert strides[-1] < max(strides), "slower steps are exchanged about more often"
    assert len(found["saves"]) == 1, "a save that was agreed is not asked for again"
    assert found["bad"] == 250 * (0 + 1 + 2)
    assert found["stop"] is Stop.REQUEUE
    assert found["slow"] > 0


class Alike:
    """A group whose ranks all say the same."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.exchanges = 0

    def gather_start(self, row: Tensor) -> Any:
        self.exchanges += 1
        return SimpleNamespace(wait=lambda: row.repeat(self.world_size, 1))


@pytest.mark.parametrize(
    ("ranks", "step_s", "exchanges"),
    [(2, 0.05, 20), (8, 0.05, 5), (1024, 0.05, 1), (2, 1.0, 100), (1024, 1.0, 10), (1024, 4.0, 100)],
)
def test_many_ranks_exchange_less_often_since_each_pays_for_all(
    ranks: int, step_s: float, exchanges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("dist_trainer.training.stop.time.perf_counter", lambda: clock.now)
    group = Alike(ranks)
    agreement = Agreement(cast(Group, group), lambda: Stop.NONE, first_step=0)
    for step in range(200):
        if step == 100:
            group.exchanges = 0  # the pace is known now
        agreement.before_step(step, save=False)
        clock.now += step_s
        agreement.after_step(step + 1, save=False, rows=1, bad_rows=0)
    assert group.exchanges == pytest.approx(exchanges, abs=1)


@pytest.mark.parametrize("ranks", [1, 2, 1024])
def test_a_pace_that_has_slowed_down_is_known_to_all_after_two_steps(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("dist_trainer.training.stop.time.perf_counter", lambda: clock.now)
    agreement = Agreement(cast(Group, Alike(ranks)), lambda: Stop.NONE, first_step=0)

    def train(step: int, step_s: float) -> None:
        agreement.before_step(step, save=False)
        clock.now += step_s
        agreement.after_step(step + 1, save=False, rows=1, bad_rows=0, longest_work_s=step_s)

    for step in range(250):
        train(step, 0.002)
    assert not agreement.is_slow
    train(250, 60.0)
    train(251, 60.0)
    assert agreement.is_slow
    for step in range(252, 256):
        train(step, 0.002)
    assert not agreement.is_slow


class SignalAt(Watch):
    """A signal to one rank after a step, once; steps are slow enough for it to be heard of."""

    def __init__(self, rank: int, step: int, number: int, marker: Path) -> None:
        super().__init__()
        self.rank, self.step, self.number, self.marker = rank, step, number, marker

    def on_step(self, trainer: Any, step: int, result: Any) -> None:
        time.sleep(0.03)
        if trainer.attempt.group.rank == self.rank and step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("ranks", "number", "reason"), [(2, signal.SIGTERM, "SIGTERM or SIGINT"), (3, signal.SIGUSR2, "SIGUSR2")]
)
def test_one_ranks_signal_stops_all_at_one_step_and_the_resumed_run_is_the_untouched_one(
    ranks: int, number: int, reason: str, tmp_path: Path
) -> None:
    for name in ("untouched", "stopped"):
        (tmp_path / name).mkdir()
    options = {"checkpoint.every_steps": 1000}
    run_ranks(ranks, train, str(tmp_path / "untouched"), options)
    hooks = (SignalAt(ranks - 1, 4, number, tmp_path / "sent"),)
    stopped = run_ranks(ranks, train, str(tmp_path / "stopped"), options, hooks)
    assert {(each.state, each.reason) for each in stopped} == {("stopped", reason)}
    assert len({each.step for each in stopped}) == 1
    assert 4 < stopped[0].step < 24
    resumed = run_ranks(ranks, train, str(tmp_path / "stopped"), options)
    assert {(each.state, each.step) for each in resumed} == {("finished", 24)}
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "untouched")


def train_with_a_request(folder: str, number: int | None) -> Result:
    if number is None:
        return train(folder)
    from dist_trainer.training import trainer as module

    class Early(Signals):
        """A request that came while the rank was starting."""

        def __init__(self) -> None:
            super().__init__()
            if os.environ["RANK"] == "1":
                os.kill(os.getpid(), number)

    module.Signals = Early  # type: ignore[misc, assignment]
    return train(folder)


def test_a_request_while_starting_stops_before_the_first_step(tmp_path: Path) -> None:
    for name in ("untouched", "stopped"):
        (tmp_path / name).mkdir()
    run_ranks(3, train, str(tmp_path / "untouched"))
    stopped = run_ranks(3, train_with_a_request, str(tmp_path / "stopped"), signal.SIGTERM)
    assert {(each.state, each.step) for each in stopped} == {("stopped", 0)}
    run_ranks(3, train_with_a_request, str(tmp_path / "stopped"), None)
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "untouched")


class Interrupting(Accuracy):
    """Sends a signal to one rank in the midst of its n-th evaluation, once."""

    def __init__(self, marker: Path | None, rank: int, at: int) -> None:
        super().__init__()
        self.marker, self.rank, self.at, self.calls = marker, rank, at, 0

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        mine = int(os.environ["RANK"]) == self.rank
        if self.marker is not None and mine and self.calls == self.at and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().measure(output, target)


def train_watched(folder: str, marker: Path | None, at: int, test: bool) -> tuple[Result, float, list[str]]:
    watch, model = Watch(), net()
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
        model=model,
        val=rows(12),
        test=rows(8) if test else None,
        metrics={"accuracy": Interrupting(marker, 1, at)},
        optimizer=lambda model: sgd(model),
        scheduler=Scheduler(
            lambda each, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(each, patience=0, threshold=0.05),
            metric="val/loss",
        ),
        hooks=[watch],
    )
    result = fit.fit()
    rate = fit.parts.train_step.optimizers["main"].param_groups[0]["lr"]
    store = Path(folder) / "run" / "checkpoints"
    return result, rate, sorted({path.parent.name[:14] for path in store.glob("*/COMMIT.json")})


@pytest.mark.parametrize(
    "at", [5, 11, 13]
)  # in the second, the last and the test evaluation; three calls each
def test_an_interrupted_evaluation_is_discarded_by_all_and_done_again(at: int, tmp_path: Path) -> None:
    expected = run_ranks(2, train_watched, str(tmp_path / "untouched"), None, 0, True)
    folder = str(tmp_path / "stopped")
    stopped = run_ranks(2, train_watched, folder, tmp_path / "sent", at, True)
    assert {(each[0].state, each[0].reason) for each in stopped} == {("stopped", "SIGUSR2")}
    assert len({each[0].step for each in stopped}) == 1
    resumed = run_ranks(2, train_watched, folder, None, 0, True)
    assert resumed == expected
    values = {
        name: {
            (line["step"], key): value
            for line in journal(tmp_path / name, "run")
            if line["kind"] == "metrics"
            for key, value in line["values"].items()
            if key.startswith(("val/", "test/"))
        }
        for name in ("untouched", "stopped")
    }
    assert values["stopped"] == values["untouched"]


def train_with_one_slow_evaluation(folder: str) -> tuple[Result, int]:
    """How the training ended, and how many batches the slow rank has measured."""
    slow = SlowAccuracy(Path(folder))
    alone = slow if os.environ["RANK"] == "1" else Interrupting(Path(folder) / "sent", 0, 2)
    fit = trainer(
        folder, "run", {"data.eval_batch_size": 1}, val=rows(40), epochs=1, metrics={"accuracy": alone}
    )
    return fit.fit(), slow.measured


def test_an_evaluation_is_abandoned_by_a_rank_that_got_no_signal_itself(tmp_path: Path) -> None:
    (tmp_path / "slow-evaluation").write_text("1")
    for result, measured in run_ranks(2, train_with_one_slow_evaluation, str(tmp_path)):
        assert (result.state, result.reason) == ("stopped", "SIGUSR2")
        assert measured < 20, "half of 40 rows, one by one"


def train_in_a_job(folder: str) -> Result:
    node = f"n{1 + int(os.environ['RANK']) % 2}"
    os.environ.update({"SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": node})
    return train(folder, {"train.epochs": 1})


@pytest.mark.parametrize("fence", [None, 1])
def test_an_attempt_says_which_job_and_nodes_it_ran_on_under_our_agent(
    fence: int | None, tmp_path: Path
) -> None:
    if fence:
        run_ranks(3, train_in_a_job, str(tmp_path))
        RunFolder(tmp_path / "runs" / "run").new_fence({})
    run_ranks(3, train_in_a_job, str(tmp_path), fence=fence and 2)
    start = [line for line in RunFolder(tmp_path / "runs" / "run").attempts() if line["event"] == "start"][-1]
    if fence:
        assert (start["nodes"], start["job"], start["restart"]) == (["n1", "n2"], "123", 2)
    else:
        assert start["nodes"] == [socket.gethostname()] and not {"job", "restart"} & set(start)
