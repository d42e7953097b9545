"""A power cut at every point of a save, and of what a run writes beside it: what was promised is there."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_trainer import run_folder
from dist_trainer.adapters import local_folder
from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.writer import Checkpointer
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder, State, Status
from dist_trainer.tracking import journal
from dist_trainer.tracking.heartbeat import Heartbeat, read_heartbeat
from dist_trainer.tracking.journal import Journal, history, read_journal, saved_checkpoints
from dist_trainer.training.time_limit import read_times
from tests.faults.ledger import is_whole, record, times
from tests.faults.power import Recorder, contents
from tests.faults.test_kill_points import what_is_wrong
from tests.faults.victims import KEEP_ONE, state, store_of

pytestmark = pytest.mark.timeout(1800 if is_whole() else 120)
SEED = int(os.environ.get("POWER_SEED", "4"))
Wrong = Callable[[Path, list[str]], str]  # the folder that is left, and what was promised


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "disk").mkdir()
    return Recorder(tmp_path / "disk")


def save_three_times(recorder: Recorder) -> None:
    """As training does, with all but the newest deleted."""
    store = store_of(Storage(recorder.root / "run" / "checkpoints"), 1)
    saver = Checkpointer(KEEP_ONE, store, report=print, on_commit=lambda saved: recorder.say(str(saved.step)))
    with recorder.recording():
        for step in (100, 200, 300):
            saver.save(step, state(step))
            saver.wait()
        saver.close()


def wrong_checkpoints(left: Path, promised: list[str]) -> str:
    return what_is_wrong(Storage(left / "run" / "checkpoints"), [int(word) for word in promised], None)


def cut_power(
    recorder: Recorder, wrong: Wrong, *, number: int, folder: Path, only_first: bool = False
) -> tuple[int, dict[str, str]]:
    """Cut it `number` times, each point in turn; how often, and what was lost where."""
    chance, lost, tried = random.Random(SEED), {}, 0
    assert recorder.root.is_dir() and contents(recorder.root) == _nothing_lost(recorder, folder)
    points = [*range(1, len(recorder.steps) + 1)]
    chance.shuffle(points)
    # of what was not synced: nothing is there, all is, and then anything
    kept = [0.0, 1.0, *[None] * number]
    for keep in kept:
        for point in points:
            if tried == number or (lost and only_first):
                return tried, lost
            left = folder / "left"
            left.mkdir()
            recorder.disk(point).after_power_cut(left, random.Random(f"{SEED} {point} {tried}"), keep)
            if problem := wrong(left, recorder.words(point)):
                lost[f"step {point}, kept {keep}, number {tried}"] = problem
            shutil.rmtree(left)
            tried += 1
    return tried, lost


def _nothing_lost(recorder: Recorder, folder: Path) -> dict[str, bytes | None]:
    (folder / "whole").mkdir()
    recorder.disk().after_power_cut(folder / "whole", random.Random(0), 1.0)
    return contents(folder / "whole")


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The looking afterwards needs none."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return


@pytest.mark.usefixtures("no_sync")
def test_a_power_cut_at_any_point_of_a_save_loses_nothing_that_was_acknowledged(
    recorder: Recorder, tmp_path: Path
) -> None:
    save_three_times(recorder)
    assert recorder.words(10**6) == ["100", "200", "300"]
    began = time.monotonic()
    tried, lost = cut_power(recorder, wrong_checkpoints, number=times(150, 3000), folder=tmp_path)
    note = f"{len(recorder.steps)} points, {time.monotonic() - began:.0f} s; POWER_SEED={SEED}"
    record("power loss at every point of a save", tried=tried, lost=len(lost), note=note)
    assert not lost


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("left_out", ["the folders' names", "the files' contents"])
def test_the_model_finds_a_loss_where_a_sync_is_left_out(
    left_out: str, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "the folders' names":
        monkeypatch.setattr(local_folder, "sync_folder", lambda path: None)
    else:
        sync = Recorder.fsync

        def only_folders(self: Recorder, real: Any, descriptor: int) -> None:
            if descriptor in self._open and (self.root / self._open[descriptor][0]).is_dir():
                sync(self, real, descriptor)

        monkeypatch.setattr(Recorder, "fsync", only_folders)
    save_three_times(recorder)
    _, lost = cut_power(recorder, wrong_checkpoints, number=500, folder=tmp_path, only_first=True)
    assert lost


CONFIG = "name: run\ncheckpoint: {keep_last: 1}\n"


def two_attempts(recorder: Recorder) -> None:
    """What is written beside the checkpoints, from the run's creation to its end, with an interruption."""
    with recorder.recording():
        run = RunFolder.create(recorder.root / "runs" / "run", CONFIG, working_folder=recorder.root)
        recorder.say("created")
        for attempt in (1, 2):
            with run.lock():
                train(recorder, run, attempt)


def train(recorder: Recorder, run: RunFolder, attempt: int) -> None:
    assert run.new_fence({"pid": os.getpid()}) == attempt
    recorder.say(f"fence {attempt}")
    with Journal(run.journal_path(0), attempt=attempt, rank=0) as own:
        heartbeat = Heartbeat(run.heartbeat_path(0), rank=0, attempt=attempt)
        run.record({"event": "start", "attempt": attempt, "first_step": 0})
        recorder.say(f"start {attempt}")
        say_status(recorder, run, "running", 2 * attempt - 1)
        for step in (1, 2):
            heartbeat.beat(step, "train")
            own.metrics(step, {"loss": float(attempt)})
            own.event("saved", step=step, checkpoint=f"step-{step:09d}-f{attempt:04d}")
        own.sync()
        recorder.say(f"synced {attempt}")
        write_json(run.path / "times.json", {"world_size": 1, "step_s": 1.0})
        heartbeat.close()
    run.record({"event": "end", "attempt": attempt, "exit_code": 0})
    say_status(recorder, run, "finished" if attempt == 2 else "stopped", 2 * attempt)


def say_status(recorder: Recorder, run: RunFolder, state: State, number: int) -> None:
    """The number tells which of the run's words is there."""
    run.write_status(Status(state, f"{number}", step=2, results={"loss": float("nan")}))
    recorder.say(f"status {number}")


def wrong_run(left: Path, promised: list[str]) -> str:
    """What an attempt after the power cut would stumble over."""
    path = left / "runs" / "run"
    try:
        try:
            run = RunFolder.open(path)
        except UsageError:
            if "created" in promised:
                return "the run is gone"
            run = RunFolder.create(path, CONFIG, working_folder=left)  # the command is given again
        return _wrong_files(run, promised)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _wrong_files(run: RunFolder, promised: list[str]) -> str:
    numbers = {
        kind: [int(word.split()[1]) for word in promised if word.startswith(kind)]
        for kind in ("fence", "start", "status")
    }
    if run.config_path.read_text() != CONFIG or not run.info().run_id:
        return "another configuration"
    if run.highest_fence() < max(numbers["fence"], default=0):
        return "a fence is gone: an attempt that was overtaken could commit"
    starts = [line["attempt"] for line in run.attempts() if line["event"] == "start"]
    if not set(numbers["start"]) <= set(starts):
        return f"attempts.jsonl has the starts {starts}"
    if int(run.status.reason or "0") < max(numbers["status"], default=0):
        return f"status.json says {run.status}"
    return _wrong_journal(run, promised) or _next_attempt_fails(run)


def _wrong_journal(run: RunFolder, promised: list[str]) -> str:
    read_heartbeat(run.heartbeat_path(0))
    read_times(run, 1)
    saved = saved_checkpoints(run.journal_path(0))
    for attempt in (1, 2):
        names = {f"step-{step:09d}-f{attempt:04d}" for step in (1, 2)}
        if f"synced {attempt}" in promised and not names <= set(saved):
            return f"of the journal there is {saved}"
    return ""


def _next_attempt_fails(run: RunFolder) -> str:
    with run.lock(watch_s=0.0):
        fence = run.new_fence({})
        with Journal(run.journal_path(0), attempt=fence, rank=0) as own:
            own.metrics(7, {"next": 0.5})
        run.record({"event": "start", "attempt": fence})
        run.write_status(Status("running", step=7))
    if history(run.journal_path(0)).get("next") != {7: 0.5} or read_journal(run.journal_path(0))[0] == []:
        return "the next attempt's points cannot be read"
    if run.attempts()[-1] != {"event": "start", "attempt": fence} or run.status.step != 7:
        return "the next attempt's start cannot be read"
    return ""


@pytest.mark.usefixtures("no_sync")
def test_a_power_cut_leaves_a_run_that_can_be_opened_and_gone_on_with(
    recorder: Recorder, tmp_path: Path
) -> None:
    two_attempts(recorder)
    began = time.monotonic()
    tried, lost = cut_power(recorder, wrong_run, number=times(250, 5000), folder=tmp_path)
    note = f"{len(recorder.steps)} points, {time.monotonic() - began:.0f} s; POWER_SEED={SEED}"
    record("power loss at every point of a run's own files", tried=tried, lost=len(lost), note=note)
    assert not lost


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("left_out", ["the run folder's name", "the journal's name"])
def test_the_model_finds_the_loss_of_a_run_where_a_sync_is_left_out(
    left_out: str, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "the run folder's name":
        unsynced = lambda path: path.mkdir(0o700, parents=True, exist_ok=True)  # noqa: E731
        monkeypatch.setattr(run_folder, "make_private_folder", unsynced)
    else:
        monkeypatch.setattr(journal, "sync_folder", lambda path: None)
    two_attempts(recorder)
    _, lost = cut_power(recorder, wrong_run, number=500, folder=tmp_path, only_first=True)
    assert list(lost.values()) == [
        "the run is gone" if left_out == "the run folder's name" else "of the journal there is []"
    ]
