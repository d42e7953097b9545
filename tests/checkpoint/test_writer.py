"""Saving while training goes on: one in flight, bounded staleness, failures that are heard of."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.state import decode
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.checkpoint.writer import Checkpointer, State
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import FencedOut, NotSaved, StorageError, UsageError


class Shelf(Storage):
    """A real folder whose writes can be held up, or made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.failures = 0
        self.error: Exception = StorageError("disk on fire")

    def write(self, name: str, data: Any) -> None:
        assert self.open_gate.wait(timeout=30)
        if self.failures:
            self.failures -= 1
            raise self.error
        super().write(name, data)


class Trial:
    """A checkpointer, its store, and all that it said."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.shelf = Shelf(path)
        self.highest = 1
        self.reports: list[str] = []
        self.commits: list[int] = []
        self.threads: set[str] = set()
        self.store = CheckpointStore(
            self.shelf, fence=1, highest_fence=lambda: self.highest, report=self.reports.append
        )
        self.config = CheckpointConfig(**config)
        self.saver = self.checkpointer()

    def checkpointer(self, **options: Any) -> Checkpointer:
        return Checkpointer(
            self.config, self.store, report=self.reports.append, on_commit=self.committed, **options
        )

    def committed(self, checkpoint: Checkpoint) -> None:
        self.commits.append(checkpoint.step)
        self.threads.add(threading.current_thread().name)

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.store.list()]


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path / "checkpoints", keep_last=10)
    yield made
    made.shelf.open_gate.set()
    made.saver.close()


def state(value: float) -> State:
    return State({"weight": torch.full((50, 50), value)}, {"step": int(value), "ema": [torch.tensor(value)]})


def test_a_save_holds_the_state_of_the_moment_it_was_asked_for(trial: Trial) -> None:
    weight = torch.full((1000, 1000), 1.0)
    history = [1]
    trial.shelf.open_gate.clear()
    assert trial.saver.save(10, State({"weight": weight, "tied": weight}, {"history": history}))
    weight.fill_(2.0)
    history.append(2)
    trial.shelf.open_gate.set()
    trial.saver.wait()
    found = trial.store.newest_good()
    assert found is not None
    model, training = decode(found[1])
    assert model["weight"].eq(1.0).all() and training == {"history": [1]}
    assert model["tied"] is model["weight"]


def test_training_goes_on_while_a_slow_store_writes_and_what_is_due_meanwhile_is_skipped(
    trial: Trial,
) -> None:
    trial.shelf.open_gate.clear()
    assert trial.saver.save(10, state(10))
    assert not trial.saver.save(20, state(20))
    assert not trial.saver.save(30, state(30))
    trial.saver.poll()
    assert trial.saver.is_busy and trial.saver.skipped == 2 and trial.saver.last_committed_step is None
    trial.shelf.open_gate.set()
    trial.saver.wait()
    assert trial.saver.save(40, state(40))
    trial.saver.wait()
    assert trial.steps() == [40, 10]
    assert trial.saver.last_committed_step == 40
    assert trial.commits == [10, 40] and not trial.reports


def test_callbacks_are_made_on_the_training_thread(trial: Trial) -> None:
    trial.saver.save(10, state(10))
    trial.saver.wait()
    assert trial.threads == {threading.current_thread().name}


def test_buffers_are_kept_and_still_hold_the_right_state(trial: Trial) -> None:
    channels_last = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    for step in (1, 2, 3):
        grown = torch.full((step, 2), float(step))
        trial.saver.save(
            step, State({"a": torch.full((3,), float(step)), "grown": grown, "c": channels_last})
        )
        trial.saver.wait()
        model, _ = decode(trial.store.read(trial.store.list()[0]))
        assert model["a"].eq(step).all() and torch.equal(model["grown"], grown)
        assert torch.equal(model["c"], channels_last) and model["c"].stride() == channels_last.stride()


def test_where_the_last_commit_is_too_old_training_waits_for_the_store(tmp_path: Path) -> None:
    trial = Trial(tmp_path, keep_last=10, max_staleness_minutes=1 / 60)
    trial.shelf.open_gate.clear()
    trial.saver.save(10, state(10))
    assert not trial.saver.save(20, state(20))
    time.sleep(1.1)
    threading.Timer(0.1, trial.shelf.open_gate.set).start()
    assert trial.saver.save(30, state(30))
    assert trial.saver.last_committed_step == 10
    assert "training waits" in trial.reports[0]
    trial.saver.wait()
    trial.saver.close()
    assert trial.steps() == [30, 10]


def test_a_store_that_never_answers_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_staleness_minutes=0.2 / 60)
    trial.shelf.open_gate.clear()
    trial.saver.save(10, state(10))
    time.sleep(0.45)
    for call in (lambda: trial.saver.save(20, state(20)), trial.saver.poll, trial.saver.wait):
        with pytest.raises(NotSaved, match="the save of step 10 has not ended: the store hangs"):
            call()
    with pytest.raises(NotSaved, match="the store hangs"):
        trial.saver.save_last(20, state(20))
    trial.shelf.open_gate.set()
    trial.saver.close()
    for thread in threading.enumerate():  # the save that hung was left to itself, and ends now
        if thread.name == "checkpoint-writer":
            thread.join(20)


def test_a_failed_save_is_reported_once_and_the_next_one_works(trial: Trial) -> None:
    trial.saver.save(10, state(10))
    trial.saver.wait()
    trial.shelf.failures = 1
    trial.saver.save(20, state(20))
    trial.saver.wait()
    trial.saver.poll()
    assert len(trial.reports) == 1
    assert "step 20 was not saved, older checkpoints are untouched" in trial.reports[0]
    assert "disk on fire" in trial.reports[0]
    assert trial.steps() == [10] and trial.saver.last_committed_step == 10
    assert trial.saver.save(20, state(20))  # the same step may be tried again
    trial.saver.wait()
    assert trial.steps() == [20, 10]


def test_failures_alone_end_nothing_while_the_last_commit_is_young_enough(trial: Trial) -> None:
    for step in range(10, 60, 10):
        trial.shelf.failures = 1
        trial.saver.save(step, state(step))
        trial.saver.wait()
    assert len(trial.reports) == 5 and "of at most 60 minutes" in trial.reports[-1]
    trial.saver.save(60, state(60))
    trial.saver.wait()
    assert trial.steps() == [60]


def test_failures_that_leave_the_last_commit_too_old_end_training(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_staleness_minutes=0.2 / 60)
    trial.shelf.failures = 1
    trial.saver.save(10, state(10))
    trial.saver.wait()
    time.sleep(0.25)
    with pytest.raises(NotSaved, match="no checkpoint could be saved for") as refused:
        trial.saver.poll()
    assert "the last of 1 failures: disk on fire" in str(refused.value)
    assert "checkpoint.max_staleness_minutes" in str(refused.value) and "same command" in str(refused.value)
    trial.saver.close()


def test_a_fenced_out_writer_stops_at_the_next_step(trial: Trial) -> None:
    trial.saver.save(10, state(10))
    trial.saver.wait()
    trial.highest = 2
    trial.saver.save(20, state(20))
    with pytest.raises(FencedOut):
        trial.saver.wait()
    assert trial.steps() == [10]


def test_the_last_save_waits_for_the_one_under_way_and_is_durable_when_it_returns(trial: Trial) -> None:
    trial.shelf.open_gate.clear()
    trial.saver.save(10, state(10))
    threading.Timer(0.1, trial.shelf.open_gate.set).start()
    trial.saver.save_last(15, state(15), metrics={"val/loss": 0.0})
    assert trial.steps() == [15, 10] and trial.commits == [10, 15]
    assert trial.store.list()[0].metrics == {"val/loss": 0.0}
    trial.saver.save_last(15, state(15))
    assert trial.steps() == [15, 10]


def test_a_last_save_that_fails_is_an_error_and_the_one_before_stays(trial: Trial) -> None:
    trial.saver.save(10, state(10))
    trial.shelf.open_gate.wait()
    trial.saver.wait()
    trial.shelf.failures = 1
    with pytest.raises(StorageError, match="step 15 could not be saved: disk on fire"):
        trial.saver.save_last(15, state(15))
    assert trial.steps() == [10]


def test_the_one_resumed_from_is_kept_until_a_newer_one_is_committed(tmp_path: Path) -> None:
    trial = Trial(tmp_path, keep_last=1)
    for step in (10, 20):
        trial.store.commit(step, {"model.safetensors": b"x"}, {})
    resumed = trial.checkpointer(keep={"step-000000010-f0001"})
    trial.shelf.failures = 1
    resumed.save(30, state(30))
    resumed.wait()
    assert trial.steps() == [20, 10]
    resumed.save(40, state(40))
    resumed.wait()
    assert trial.steps() == [40, 10]
    resumed.save(50, state(50))
    resumed.wait()
    assert trial.steps() == [50]


def test_a_commit_that_does_not_read_back_counts_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(tmp_path, keep_last=1)
    trial.saver.save(10, state(10))
    trial.saver.wait()
    write = Storage.write

    def rotten(self: Storage, name: str, data: Any) -> None:
        write(self, name, b"rotten" if name.endswith("training.json") else data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", rotten)
        trial.saver.save(20, state(20))
        trial.saver.wait()
    assert trial.steps() == [10] and trial.saver.last_committed_step == 10
    assert any("step 20 was not saved" in report for report in trial.reports)
    trial.saver.close()


def test_old_ones_that_cannot_be_deleted_are_an_alarm_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(tmp_path, keep_last=1)
    trial.saver.save(10, state(10))
    trial.saver.wait()

    def refused(self: Storage, name: str) -> None:
        raise StorageError("not allowed")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", refused)
        trial.saver.save(20, state(20))
        trial.saver.wait()
    assert trial.steps() == [20, 10] and trial.saver.last_committed_step == 20
    assert trial.reports == ["old checkpoints could not be cleared away: not allowed"]
    trial.saver.close()


def test_what_cannot_be_saved_is_raised_where_it_was_handed_in(trial: Trial) -> None:
    with pytest.raises(UsageError, match=r"training\.hook"):
        trial.saver.save(10, State({}, {"hook": object()}))
    assert not trial.saver.is_busy


def test_closing_waits_reports_and_never_raises(trial: Trial) -> None:
    trial.shelf.failures = 1
    trial.saver.save(10, state(10))
    trial.saver.close()
    trial.saver.close()
    assert "step 10 was not saved" in trial.reports[0]


def test_a_save_is_due_by_minutes(tmp_path: Path) -> None:
    trial = Trial(tmp_path, every_steps=500, every_minutes=1 / 60)
    assert not trial.saver.minutes_due()
    time.sleep(1.1)
    assert trial.saver.minutes_due()
    trial.shelf.open_gate.clear()
    trial.saver.save(7, state(7))
    time.sleep(1.1)
    assert not trial.saver.minutes_due()  # one is on its way
    trial.shelf.open_gate.set()
    trial.saver.wait()
    assert trial.saver.minutes_due()
    trial.saver.close()


def test_the_staleness_bound_holds_where_nothing_else_asks_for_a_save(tmp_path: Path) -> None:
    trial = Trial(tmp_path, every_steps=10**6, every_minutes=None, max_staleness_minutes=1 / 60)
    assert not trial.saver.minutes_due()
    time.sleep(1.1)
    assert trial.saver.minutes_due()
