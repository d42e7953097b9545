"""When checkpoints are written, and their writing off the training thread: one in flight, none queued."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dist_trainer.checkpoint.staging import Staging
from dist_trainer.checkpoint.state import Captured, State, capture, serialize
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, FencedOut, StorageError

__all__ = ["Checkpointer", "State"]

FAILURES_IN_A_ROW = 3


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

        Raises StorageError where it could not be written.
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

        Raises FencedOut, and StorageError after three failures in a row or where failures have left the
        last commit older than `max_staleness_minutes`.
        """
        if self._flight is not None and not self._flight.is_alive():
            self._settle()
        if self._failures and not self.is_busy and self.is_stale:
            minutes = self._config.max_staleness_minutes
            raise StorageError(f"no checkpoint could be saved for {minutes:g} minutes; {self._last_error}")

    def wait(self) -> None:
        """Wait for the save under way; raises as `poll` does."""
        self._join()
        self.poll()

    def close(self, *, timeout_s: float | None = None) -> None:
        """Wait for the save under way; what goes wrong is reported, not raised. One that takes longer than
        `timeout_s` is left to itself: it dies with the process, and never commits under a newer fence."""
        if self._flight is not None:
            self._flight.join(timeout_s)
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
        return time.monotonic() - self._safe_since > 60 * self._config.max_staleness_minutes

    def _wait_if_stale(self) -> bool:
        if not self.is_stale:
            return False
        self._report("the checkpoint store is slow: training waits for the save under way")
        assert self._flight is not None
        bound_s = 60 * self._config.max_staleness_minutes
        self._flight.join(timeout=bound_s)
        if self._flight.is_alive():
            raise StorageError(
                f"the save of step {self._flight.step} has not ended within {2 * bound_s / 60:g} minutes"
            )
        self.poll()
        return True

    def _join(self) -> Exception | None:
        if self._flight is None:
            return None
        self._flight.join()
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
        self._last_error = f"last error: {error}"
        if isinstance(error, FencedOut):
            raise error
        if not isinstance(error, StorageError | OSError):
            raise error  # a defect of ours or no memory left: another try would not help
        self._report(
            f"step {step} was not saved, older checkpoints are untouched, training goes on "
            f"({self._failures} of {FAILURES_IN_A_ROW} failures in a row): {error}"
        )
        if self._failures >= FAILURES_IN_A_ROW:
            raise StorageError(
                f"{self._failures} checkpoints in a row could not be saved; {self._last_error}"
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
