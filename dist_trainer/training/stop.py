"""When to stop: the one owner of signals, and the step at which all ranks agree to act on one."""

import math
import os
import signal
import statistics
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import NamedTuple

import torch

from dist_trainer.adapters.distributed import Group, PendingGather
from dist_trainer.adapters.place import Place
from dist_trainer.errors import STOPPED
from dist_trainer.training.notebook import in_kernel

# An exchange of a few integers takes 0.3 ms for each of many ranks, which pass all rows on in turn.
EXCHANGE_S_A_RANK = 0.125  # how often, in seconds of training,
EXCHANGE_S = (0.25, 10.0)  # but no more often, and no more rarely
SLOW_STEP_S_A_RANK = 0.015  # steps this long are worth a wait for one each, to stop before the next one,
SLOW_STEP_S = (0.5, 3.0)  # but none that are shorter, and all that are longer
LOOK_S = 0.25  # how often a rank that may break something off looks for others' word
MAX_STRIDE = 100
ONE_REQUEST_S = 1.0  # signals this close together are one request: a terminal's INT and a launcher's TERM


class Stop(IntEnum):
    """What was asked for; of several ranks' wishes the highest counts."""

    NONE = 0
    REQUEUE = 1  # USR2: stop, save, run again
    TIME_LIMIT = 2  # likewise, by the clock
    END = 3  # TERM, INT: stop and save

    @property
    def reason(self) -> str:
        """The cause in words, for status.json and attempts.jsonl."""
        return ("", "SIGUSR2", "time limit", "SIGTERM or SIGINT")[self]

    @property
    def run_again(self) -> bool:
        """Whether only the machine is wanted back, and not the run ended."""
        return self in (Stop.REQUEUE, Stop.TIME_LIMIT)


class Signals:
    """Sets a flag and returns: nothing is saved, sent or printed in a handler.

    The first request is the cause, and another signal changes nothing: a scheduler sends USR2, then TERM. The
    same one again, a second or more after it came first, leaves at once with the last committed checkpoint; a
    notebook's kernel lives on, and the cell ends with KeyboardInterrupt. Never under our agent, who passes on what
    the scheduler sends to every process anyway, and decides alone.
    """

    def __init__(self) -> None:
        self.requested = Stop.NONE
        self._has_agent = Place.from_environment().fence is not None
        self._has_raised = False
        self._first: dict[int, float] = {}  # when each signal came, by its number
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        }

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first.setdefault(number, now) > ONE_REQUEST_S and not self._has_agent:
            if number == signal.SIGINT and in_kernel():
                if self._has_raised:
                    return  # the cell is ending: its own way out is not broken off
                self._has_raised = True
                raise KeyboardInterrupt("interrupted again before it had stopped")
            os._exit(STOPPED)
        if not self.requested:
            self.requested = Stop.REQUEUE if number == signal.SIGUSR2 else Stop.END

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


class Interruption:
    """Whether to break off what can be: an evaluation, or a wait for data that all ranks may break off.

    At once where this rank was asked to stop, and soon where another one was. The one that was asked says so at
    the next exchange, where all of them stop.
    """

    def __init__(self, group: Group, asked: Callable[[], Stop]) -> None:
        self._group = group
        self._asked = asked
        self._is_known = False
        self._look_at = 0.0

    def __call__(self) -> bool:
        """Not collective; costs next to nothing."""
        if self._is_known:
            return True
        now = time.monotonic()
        if self._asked():
            self._is_known = True
            self._group.tell("stop")
        elif now >= self._look_at:
            self._look_at = now + LOOK_S
            self._is_known = self._group.is_told("stop")
        return self._is_known


class Agreement:
    """A gather of a few integers, started after one step and waited for some steps later.

    A blocking reduction at every step costs milliseconds over gloo, and over NCCL the hosts are not in step;
    so each rank waits at a step of which all know the number. The steps between two exchanges follow from the
    step times that all ranks have seen, so every rank computes the same number. Slow steps, to which a wait is
    nothing, begin with an exchange of their own instead, so that one that was asked to stop is the last.
    What an exchange costs each rank grows with their number, so many ranks make one less often. A step that
    was slow, of which the gradients tell all ranks, ends with one at once, lest the old pace be trusted.
    """

    def __init__(self, group: Group, asked: Callable[[], Stop], *, first_step: int) -> None:
        self._group = group
        self._asked = asked
        self._pending: PendingGather | None = None
        self._next = first_step + 1
        self._rows = self._bad_rows = 0
        self._step_us = 0
        self._slowest_s = math.inf  # until the first was measured
        self.every_s = _within(EXCHANGE_S, EXCHANGE_S_A_RANK * group.world_size)
        self._slow_s = _within(SLOW_STEP_S, SLOW_STEP_S_A_RANK * group.world_size)
        self.measure_from(first_step)

    @property
    def is_slow(self) -> bool:
        """Whether each step begins with an exchange; the same on every rank."""
        return self._slowest_s >= self._slow_s

    def before_step(self, step: int, *, save: bool) -> Agreed | None:
        """Called with the next step's data, or without for an interruption. Collective in its effect."""
        return self.now(step, save=save) if self.is_slow else None

    def after_step(
        self,
        step: int,
        *,
        save: bool,
        rows: int,
        bad_rows: int,
        at_once: bool = False,
        longest_work_s: float = 0.0,
    ) -> Agreed | None:
        """Called with this rank's rows; None where no exchange is due. Collective in its effect.

        `at_once`: all ranks know that one of them was asked to stop, but not for what. `longest_work_s`: what
        the slowest rank's step took, this one or the one before, as all ranks know it.
        """
        self._rows += rows
        self._bad_rows += bad_rows
        if at_once or (longest_work_s >= self._slow_s and not self.is_slow):
            return self.now(step, save=save)
        if self.is_slow or step < self._next:
            return None
        agreed = self._finish()
        self._next = step + min(MAX_STRIDE, max(1, int(self.every_s / max(self._slowest_s, 1e-6))))
        # a save that is agreed now has not begun yet, so rank 0's clock still asks for it
        self._start(step, save and not (agreed and agreed.save))
        return agreed

    def now(self, step: int, *, save: bool = False) -> Agreed:
        """Exchange at once and wait. Collective: every rank calls it at the same step."""
        before = self._finish()
        self._start(step, save)
        agreed = self._finish()
        assert agreed is not None
        self._next = step + 1
        if before is None:
            return agreed
        return agreed._replace(
            save=agreed.save or before.save,
            rows=agreed.rows + before.rows,
            bad_rows=agreed.bad_rows + before.bad_rows,
        )

    def measure_from(self, step: int) -> None:
        """What passed until now belongs to no step."""
        self._since = (step, time.perf_counter())

    def _start(self, step: int, save: bool) -> None:
        since_step, since = self._since
        if step > since_step:
            self._step_us = int(1e6 * (time.perf_counter() - since) / (step - since_step))
            self.measure_from(step)
        own = [self._asked(), int(save), self._rows, self._bad_rows, self._step_us]
        self._rows = self._bad_rows = 0
        self._pending = self._group.gather_start(torch.tensor(own, dtype=torch.int64))

    def _finish(self) -> Agreed | None:
        if self._pending is None:
            return None
        stops, saves, rows, bad, times = zip(*self._pending.wait().tolist(), strict=True)
        self._pending = None
        median_s, slowest_s = statistics.median(times) / 1e6, max(times) / 1e6
        self._slowest_s = slowest_s or self._slowest_s
        return Agreed(Stop(max(stops)), any(saves), sum(rows), sum(bad), median_s, slowest_s)


def _within(bounds: tuple[float, float], wanted: float) -> float:
    return min(max(bounds[0], wanted), bounds[1])
