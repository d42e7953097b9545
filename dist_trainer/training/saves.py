"""Which checkpoints a run writes and goes on from: the ranks' side of dist_trainer.checkpoint."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from torch import Tensor

from dist_trainer.adapters.storage import Buffer
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.state import decode, encode
from dist_trainer.checkpoint.store import Checkpoint
from dist_trainer.checkpoint.writer import Checkpointer, State
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import FINISHED, STOPPED, NoProgress, NoUsableCheckpoint
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import saved_checkpoints
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.best import Best
from dist_trainer.training.same_state import SameState
from dist_trainer.training.stop import Stop

RESUMES_WITHOUT_PROGRESS = 3
ABANDONED_AFTER_S = 10.0
_TAKEN_AWAY = {Stop.REQUEUE.reason, Stop.END.reason, "preempted", "requeued", "cancelled", "node failure"}


class Saves:
    """Rank 0 writes; every rank reads. Calls marked collective are made by all ranks at the same step."""

    def __init__(self, config: CheckpointConfig, attempt: Attempt, same_state: SameState) -> None:
        self._config = config
        self._attempt = attempt
        self._same_state = same_state
        self._store = open_store(attempt.run, config, fence=attempt.number, report=self._report)
        self._writer: Checkpointer | None = None
        self._resumed_from: list[str] = []
        self._best = Best(config.keep_best) if config.keep_best else None
        self._is_abandoned = False
        self.longest_s = 0.0  # that a save of this attempt took; on rank 0

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest good checkpoint's model and training state, None where there is none yet. Collective.

        Rank 0 chooses and the others read the same one; each verifies every byte that it reads. Raises
        NoUsableCheckpoint where none is good or all are gone, NoProgress after three resumes from one.
        """
        files: Mapping[str, Buffer] | None = None

        def choose() -> str | None:
            nonlocal files
            # by name too: a store's listing may not show yet what was saved a moment ago
            found = self._store.newest_good(saved_checkpoints(self._attempt.run.journal_path(0)))
            if found is None:
                refuse_lost(self._attempt.run, self._store.storage.url)
                return None
            checkpoint, files = found
            refuse_standstill(self._attempt.run, checkpoint.step)
            return checkpoint.name

        group = self._attempt.group
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="resume") as reader:
            chosen = reader.submit(choose) if group.is_rank_zero else None
            group.wait_for_rank_zero(lambda: chosen is not None and not chosen.done())
            name = group.from_rank_zero(lambda: chosen.result() if chosen else None)
        if name is None:
            return None
        self._resumed_from = [name]
        return decode(files if files is not None else self._store.read(self._store.get(name)))

    def start(self, step: int) -> None:
        """Raise RanksDiverged where the ranks do not begin alike, and start rank 0's writer thread. Collective.

        After the loader's processes were forked.
        """
        self._same_state.check(step)
        if self._attempt.is_rank_zero:
            self._store.storage.check_promises()
            self._writer = Checkpointer(
                self._config, self._store, report=self._report, on_commit=self._note, keep=self._resumed_from
            )

    def minutes_due(self) -> bool:
        """Whether by rank 0's clock it is time to save; the ranks agree on the step."""
        return self._writer is not None and self._writer.minutes_due()

    def is_due(self, step: int, *, agreed: bool, metrics: Mapping[str, float]) -> bool:
        """Whether all ranks save after this step; `metrics` are an evaluation's at this step. Collective."""
        if self._is_best(metrics):
            self._wait(step, self._may_end)  # or it would be skipped, with the one before still being written
            return True
        return agreed or step % self._config.every_steps == 0

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        best = self._config.keep_best
        if best is None or best.metric not in metrics:
            return False
        return self._best is not None and self._best.update(metrics[best.metric])

    def save(
        self, step: int, capture: Callable[[], State], metrics: Mapping[str, float], *, last: bool
    ) -> None:
        """Save in the background, or with `last` wait until it is committed. Collective.

        Raises RanksDiverged, and saves nothing, where not all ranks hold the same.
        """
        self._same_state.check(step)
        self._wait(step, lambda: self._may_end() and (last or self._is_stale()))
        state = capture()
        if self._writer is not None:
            self._attempt.journal.sync()
            self._writer.save(step, state, metrics=metrics)
        if last:
            self._wait(step, self._may_end)
            if self._writer is not None:
                self._writer.save(step, state, metrics=metrics)  # a second try, where it failed
            self._wait(step, self._may_end)
            if self._writer is not None:
                self._writer.save_last(step, state, metrics=metrics)  # raises where it could not be written

    def _wait(self, step: int, is_busy: Callable[[], bool]) -> None:
        """All ranks wait while rank 0's writer is busy: one that waited alone would let the others time out."""
        beat = self._attempt.heartbeat.beat
        self._attempt.group.wait_for_rank_zero(is_busy, meanwhile=lambda: beat(step, "save"))

    @property
    def is_busy(self) -> bool:
        """Whether rank 0 writes a checkpoint now; False on the others."""
        return self._writer is not None and self._writer.is_busy

    def _may_end(self) -> bool:
        """Whether rank 0 writes a checkpoint, and not for so long that the store must hang."""
        return self._writer is not None and self._writer.is_busy and not self._writer.is_stuck

    def _is_stale(self) -> bool:
        return self._writer is not None and self._writer.is_stale

    def poll(self) -> None:
        """After every step: raises StorageError where saving has failed for good, FencedOut where it must not."""
        if self._writer is not None:
            self._writer.poll()

    def _note(self, checkpoint: Checkpoint) -> None:
        if self._writer is not None:
            self.longest_s = max(self.longest_s, self._writer.longest_s)
        self._attempt.journal.event("saved", step=checkpoint.step, checkpoint=checkpoint.name)

    def gather_state(self, own: dict[str, Any]) -> list[Any]:
        """Each rank's state, by rank. Collective where any rank has one; all or none have."""
        files = encode({}, own)
        text = json.dumps({name: b"".join(content).hex() for name, content in files.items()})
        gathered = self._attempt.group.gather_bytes(text.encode())
        parts = [
            {name: bytes.fromhex(value) for name, value in json.loads(part).items()} for part in gathered
        ]
        return [decode(part)[1] for part in parts]

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._best.state_dict() if self._best else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the best value."""
        if self._best and state["best"]:
            self._best.load_state_dict(state["best"])

    def close(self) -> None:
        """Wait for the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def abandon(self) -> None:
        """After a failure: give the save under way some seconds, since it is good, and leave a stuck one."""
        self._is_abandoned = True
        if self._writer is not None:
            self._writer.close(timeout_s=ABANDONED_AFTER_S)
            self._writer = None

    def _report(self, message: str) -> None:
        with suppress(OSError):  # a log on a full disk
            print(message, flush=True)
        if not self._is_abandoned:  # the journal may be closed before a stuck writer says something
            self._attempt.journal.event("alarm", message=message)


def refuse_lost(run: RunFolder, url: str) -> None:
    """Raise NoUsableCheckpoint where the run has saved before, and nothing is at `url` any more."""
    if has_saved(run):
        raise NoUsableCheckpoint(
            f"{url}: no checkpoint is there, and run {run.path.name} has saved some; mount the folder or bring it "
            "back, or start over with --fresh"
        )


def has_saved(run: RunFolder) -> bool:
    """Whether an attempt went on from a checkpoint, ended in good order, or wrote down that it had saved."""
    for line in run.attempts():
        ended_well = line.get("exit_code") in (FINISHED, STOPPED) and (line.get("last_step") or 0) > 0
        if line.get("first_step", 0) > 0 or ended_well:
            return True
    try:
        with run.journal_path(0).open("rb") as lines:
            return any(_kind(line) == "saved" for line in lines)
    except FileNotFoundError:
        return False


def _kind(line: bytes) -> Any:
    try:
        return json.loads(line)["kind"] if b'"saved"' in line else None
    except ValueError:  # torn by a crash
        return None


def refuse_standstill(run: RunFolder, step: int) -> None:
    """Raise NoProgress where the last three attempts that were let train began at this step too.

    One that a machine's owner ended, by a preemption, a cancel or a loss of the node, neither counts nor
    excuses; after a run's end, and after NoProgress, counting begins anew. Before the first checkpoint nothing
    counts: what fails there, somebody is just mending.
    """
    starts: dict[int, int] = {}
    for line in run.attempts():
        if line["event"] == "start":
            starts[line["attempt"]] = line.get("first_step", 0)
        elif line.get("exit_code") == NoProgress.exit_code or line.get("cause") == "finished":
            starts.clear()
        elif line["event"] == "end" and line.get("cause") in _TAKEN_AWAY:
            starts.pop(line["attempt"], None)
    recent = list(starts.values())[-RESUMES_WITHOUT_PROGRESS:]
    if step > 0 and recent == [step] * RESUMES_WITHOUT_PROGRESS:
        raise NoProgress(
            f"the last {RESUMES_WITHOUT_PROGRESS} attempts all started from the checkpoint of step {step} and "
            f"none got to another one; see {run.attempts_path} and the logs beside it for why"
        )
