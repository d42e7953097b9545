"""When checkpoints are written, and their writing off the training thread: one in flight, none queued."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dist_trainer.checkpoint.staging import Staging
from dist_trainer.checkpoint.state import Captured, State, capture, serialize
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, FencedOut, NotSaved, StorageError

__all__ = ["Checkpointer", "State"]


class Checkpointer:
    """Rank 0's writer of checkpoints. All methods are called, and all callbacks made, on the training thread.

    `report(message)` hears of saves that failed; `on_commit(checkpoint)` of each that is durable, at the next
    call after it is. `keep` names checkpoints that retention leaves alone until the first new one is
    committed: the one that training was resumed from.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        store: CheckpointStore,
        *,
        report: Callable[[str], None],
        on_commit: Callable[[Checkpoint], None] = lambda checkpoint: None,
        keep: Collection[str] = (),
    ) -> None:
        self._config = config
        self._store = store
        self._report = report
        self._on_commit = on_commit
        self._keep = set(keep)
        self._staging = Staging()
        self._flight: _Flight | None = None
        self._failures = 0
        self._last_error = ""
        self._started_at = self._safe_since = time.monotonic()
        self._last_started: int | None = None
        self.last_committed_step: int | None = None
        self.longest_s = 0.0  # of the saves that were committed, from the copy on
        self.skipped = 0  # saves that were due while the one before was still being written

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._flight is not None and self._flight.is_alive()

    @property
    def is_stuck(self) -> bool:
        """Whether the save under way, waited for as long as training went on beside it, still has not ended."""
        flight = self._flight
        return self.is_busy and flight is not None and flight.age_s > 2 * self._bound_s

    @property
    def _bound_s(self) -> float:
        return 60 * self._config.max_staleness_minutes

    def minutes_due(self) -> bool:
        """Whether one is due by this process's clock."""
        minutes = min(
            self._config.every_minutes or self._config.max_staleness_minutes,
            self._config.max_staleness_minutes,
        )
        overdue = time.monotonic() - self._started_at >= 60 * minutes
        return overdue and (not self.is_busy or self.is_stale)

    def save(
        self,
        step: int,
        state: State,
        *,
        metrics: Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> bool:
        """Copy the state and write it in the background. False if there is nothing to do for this step, or
        the last save still runs: then this one is skipped, or, where the last commit is older than
        `max_staleness_minutes`, waited for.

        `state` may change as soon as this returns. Raises as `poll` does, and UsageError naming the key of
        a value that cannot be saved.
        """
        self.poll()
        if step in (self._last_started, self.last_committed_step):
            return False
        if self.is_busy and not self._wait_if_stale():
            self.skipped += 1
            return False
        self._start(step, state, metrics, info)
        return True

    def save_last(
        self,
        step: int,
        state: State,
        *,
        metrics: Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Wait for the save under way, then for one of this step; returns when it is durable.

        Raises StorageError where it could not be written, NotSaved where the store hangs.
        """
        self._join()
        self._settle()
        if step != self.last_committed_step:
            self._start(step, state, metrics, info)
            error = self._join()
            self._settle()
            if error is not None:
                raise StorageError(f"step {step} could not be saved: {error}") from error

    def poll(self) -> None:
        """Take notice of a save that ended: call it at every step; costs nothing while there is none.

        Raises FencedOut, and NotSaved where failures, or a save that does not end, have left the last commit
        older than `max_staleness_minutes`.
        """
        if self._flight is not None and not self._flight.is_alive():
            self._settle()
        if self.is_stuck:
            raise self._not_saved(f"the save of step {self._last_started} has not ended: the store hangs")
        if self._failures and not self.is_busy and self.is_stale:
            raise self._not_saved(f"the last of {self._failures} failures: {self._last_error}")

    def _not_saved(self, why: str) -> NotSaved:
        last = self.last_committed_step
        saved = "what was saved before" if last is None else f"the checkpoint of step {last}"
        return NotSaved(
            f"no checkpoint could be saved for {self._config.max_staleness_minutes:g} minutes "
            f"(checkpoint.max_staleness_minutes); {why}. Training ends and {saved} is untouched: see to the store, "
            "then the same command goes on from there"
        )

    def wait(self) -> None:
        """Wait for the save under way; raises as `poll` does."""
        self._join()
        self.poll()

    def close(self, *, timeout_s: float | None = None) -> None:
        """Wait for the save under way; what goes wrong is reported, not raised. One that takes longer than
        `timeout_s` is left to itself: it dies with the process, and never commits under a newer fence."""
        if self._flight is not None:
            self._flight.join(0 if timeout_s is not None and self.is_stuck else timeout_s)
            if self._flight.is_alive():
                return
        try:
            self._settle()
        except (FencedOut, StorageError) as error:
            self._report(str(error))

    def _start(
        self,
        step: int,
        state: State,
        metrics: Mapping[str, float] | None,
        info: Mapping[str, Any] | None,
    ) -> None:
        began_at = time.monotonic()
        staged = self._staging.copy(capture(state))
        about = {**(info or {}), "metrics": dict(metrics or {})}
        self._started_at = time.monotonic()
        self._last_started = step
        self._flight = _Flight(self._store, self._config, frozenset(self._keep), step, staged, about)
        self._flight.began_at = began_at
        self._flight.start()

    @property
    def is_stale(self) -> bool:
        """Whether the last commit is older than `max_staleness_minutes`."""
        return time.monotonic() - self._safe_since > self._bound_s

    def _wait_if_stale(self) -> bool:
        if not self.is_stale:
            return False
        self._report("the checkpoint store is slow: training waits for the save under way")
        self._join()
        self.poll()
        return True

    def _join(self) -> Exception | None:
        """Wait for the save under way; its error. Raises NotSaved where it takes longer than any may."""
        if self._flight is None:
            return None
        while self._flight.is_alive():
            self._flight.join(timeout=max(0.0, 2 * self._bound_s - self._flight.age_s) + 0.01)
            if self.is_stuck:
                self.poll()
        return self._flight.error

    def _settle(self) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if flight.alarm is not None:
            self._report(f"old checkpoints could not be cleared away: {flight.alarm}")
        if flight.error is None and flight.committed is not None:
            self._failures = 0
            self._safe_since = flight.captured_at
            self.last_committed_step = flight.step
            self.longest_s = max(self.longest_s, flight.ended_at - flight.began_at)
            self._keep.clear()
            self._on_commit(flight.committed)
        elif flight.error is not None:
            self._failed(flight.step, flight.error)

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        self._last_started = None
        self._last_error = str(error)
        if isinstance(error, FencedOut):
            raise error
        if not isinstance(error, StorageError | OSError):
            raise error  # a defect of ours or no memory left: another try would not help
        unsaved = (time.monotonic() - self._safe_since) / 60
        self._report(
            f"step {step} was not saved, older checkpoints are untouched, training goes on (unsaved for "
            f"{unsaved:.1f} of at most {self._config.max_staleness_minutes:g} minutes): {error}"
        )


class _Flight(threading.Thread):
    """One save under way. A daemon: a store that hangs must not keep the process from ending, and the commit
    protocol makes stopping anywhere safe."""

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        keep: Collection[str],
        step: int,
        staged: Captured,
        info: Mapping[str, Any],
    ) -> None:
        super().__init__(name="checkpoint-writer", daemon=True)
        self._store, self._config, self._keep = store, config, keep
        self._staged, self._info = staged, info
        self.step = step
        self.captured_at = self.began_at = self.ended_at = time.monotonic()
        self.committed: Checkpoint | None = None
        self.error: Exception | None = None
        self.alarm: Exception | None = None

    @property
    def age_s(self) -> float:
        """For how long it has been under way."""
        return time.monotonic() - self.began_at

    def run(self) -> None:
        try:
            self.committed = self._store.commit(self.step, serialize(self._staged), self._info)
            self._store.retain(self._config, self._keep)
        except Exception as error:
            if self.committed is None or isinstance(error, CorruptCheckpoint):
                self.error = error
            else:
                self.alarm = error
        self.ended_at = time.monotonic()
