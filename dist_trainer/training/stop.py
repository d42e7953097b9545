"""When to stop: the one owner of signals, and the step at which all ranks agree to act on one."""

import os
import signal
import statistics
import time
from enum import IntEnum
from types import FrameType
from typing import NamedTuple

import torch

from dist_trainer.adapters.distributed import Group, PendingGather
from dist_trainer.errors import STOPPED

EXCHANGE_S = 0.25  # how often ranks exchange their few integers, in seconds of training
MAX_STRIDE = 100
ONE_REQUEST_S = 1.0  # signals this close together are one request: a terminal's INT and a launcher's TERM


class Stop(IntEnum):
    """What was asked for; of several ranks' wishes the highest counts."""

    NONE = 0
    REQUEUE = 1  # USR2: stop, save, run again
    END = 2  # TERM, INT: stop and save


class Signals:
    """Sets a flag and returns: nothing is saved, sent or printed in a handler.

    The same signal again, a second or more after it came first, leaves at once with the last committed
    checkpoint. Another signal does not: a scheduler sends USR2, then TERM, and a save under way goes on.
    """

    def __init__(self) -> None:
        self.requested = Stop.NONE
        self._first: dict[int, float] = {}  # when each signal came, by its number
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        }

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first.setdefault(number, now) > ONE_REQUEST_S:
            os._exit(STOPPED)
        wanted = Stop.REQUEUE if number == signal.SIGUSR2 else Stop.END
        self.requested = max(self.requested, wanted)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Agreed(NamedTuple):
    """What all ranks said at one exchange; the same on each of them, at the same step."""

    stop: Stop
    save: bool
    rows: int  # trained since the exchange before, over all ranks
    bad_rows: int  # skipped since then
    median_step_s: float
    slowest_step_s: float


class Agreement:
    """A gather of a few integers, started at one step and waited for some steps later.

    A blocking reduction at every step costs milliseconds over gloo, and over NCCL the hosts are not in step;
    so each rank waits at a step of which all know the number. The steps between two exchanges follow from the
    step times that all ranks have seen, so every rank computes the same number.
    """

    def __init__(self, group: Group, signals: Signals, *, first_step: int) -> None:
        self._group = group
        self._signals = signals
        self._pending: PendingGather | None = None
        self._next = first_step + 1
        self._rows = self._bad_rows = 0
        self._since = (first_step, time.perf_counter())

    def exchange(self, step: int, *, save: bool, rows: int, bad_rows: int) -> Agreed | None:
        """Called after every step with this rank's rows; None where no exchange is due. Collective in its effect."""
        self._rows += rows
        self._bad_rows += bad_rows
        if step < self._next:
            return None
        agreed = self._finish()
        slowest = agreed.slowest_step_s if agreed else EXCHANGE_S
        self._next = step + min(MAX_STRIDE, max(1, int(EXCHANGE_S / max(slowest, 1e-6))))
        # a save that is agreed now has not begun yet, so rank 0's clock still asks for it
        self._start(step, save and not (agreed and agreed.save))
        return agreed

    def now(self, step: int) -> Agreed:
        """Exchange at once and wait. Collective: every rank calls it at the same step."""
        before = self._finish()
        self._start(step, save=False)
        agreed = self._finish()
        assert agreed is not None
        self._next = step + 1
        if before is None:
            return agreed
        return agreed._replace(rows=agreed.rows + before.rows, bad_rows=agreed.bad_rows + before.bad_rows)

    def _start(self, step: int, save: bool) -> None:
        since_step, since = self._since
        now = time.perf_counter()
        step_us = int(1e6 * (now - since) / max(1, step - since_step))
        self._since = (step, now)
        own = [self._signals.requested, int(save), self._rows, self._bad_rows, step_us]
        self._rows = self._bad_rows = 0
        self._pending = self._group.gather_start(torch.tensor(own, dtype=torch.int64))

    def _finish(self) -> Agreed | None:
        if self._pending is None:
            return None
        stops, saves, rows, bad, times = zip(*self._pending.wait().tolist(), strict=True)
        self._pending = None
        median_s, slowest_s = statistics.median(times) / 1e6, max(times) / 1e6
        return Agreed(Stop(max(stops)), any(saves), sum(rows), sum(bad), median_s, slowest_s)
