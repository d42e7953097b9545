"""Knows when training is over, for the process that outlives it: by status.json, or by its parent's death."""

import os
import time

from dist_trainer.adapters.file_lock import read_owner
from dist_trainer.run_folder import RunFolder, State

_LATE_S = 5.0  # no more is believed of a clock that may be another node's
_END: dict[State, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "do-not-requeue": "FAILED",
}


def end_status(state: State, *, run_again: bool = False) -> str | None:
    """MLflow's word for how a run ended; None while it did not."""
    return "SCHEDULED" if state == "stopped" and run_again else _END.get(state)


class RunEnd:
    """Watches one attempt. `stale_s` is the time of the status that an earlier attempt left, if it did.

    Make it as soon as training is there: whose run it is by then is who trains it.
    """

    def __init__(self, run: RunFolder, *, parent: int, stale_s: float | None) -> None:
        self._run = run
        self._parent = parent
        self._stale_s = stale_s
        self._owner = read_owner(run.path / "run.lock")
        self.status: str | None = None
        self.since = 0.0  # when it ended, on the monotonic clock

    def seen(self) -> str | None:
        """MLflow's end status once training is over, and from then on the same."""
        if self.status is None:
            orphaned = (
                os.getppid() != self._parent
            )  # looked at first: a parent writes its status before it goes
            status = self._run.read_status()
            over = None
            if status.time != self._stale_s:
                over = end_status(status.state, run_again=status.run_again)
            if over or orphaned:
                late_s = time.time() - status.time if over else 0.0
                # before the status: another thread acts on both
                self.since = time.monotonic() - min(max(late_s, 0.0), _LATE_S)
                self.status = over or "KILLED"
        return self.status

    def is_gone_on(self) -> bool:
        """Whether somebody else trains the run by now, after a kill: its end is then for that attempt to tell."""
        owner = read_owner(self._run.path / "run.lock")
        return owner is not None and owner != self._owner

    def wait(self, seconds: float) -> None:
        """Sleep, but not on when training ends."""
        deadline = time.monotonic() + seconds
        known = self.status is not None
        while time.monotonic() < deadline and (known or self.seen() is None):
            time.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
