"""What the command was asked by signals: stop and save, hand the machine back, or leave at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPATIENT_AFTER_S = 1.0  # sooner, a second Ctrl-C is a bouncing key


class StopRequested(Exception):
    """A request to stop came while nothing was there to be saved."""


class _Ended(BaseException):
    """TERM or HUP came, and what is open is to be cleaned up."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def ended_once_cleaned() -> Iterator[None]:
    """TERM and HUP in this block leave it as an exception does, and then end the process as they do anyway.

    For a command whose work is worth nothing until it is done. Only the main thread can.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one does not stop the cleaning
        raise _Ended(number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequests:
    """Collects requests to stop while `listening`; whoever waits looks at it between two steps of its own.

    INT, TERM and HUP ask the workers to save and stop, USR2 to save because the scheduler wants the machine
    back. INT followed by TERM is one request. A second INT a second or more after the first one means: now.
    """

    def __init__(self) -> None:
        self.wanted: list[signal.Signals] = []  # what each worker is to be sent, once each
        self.since: float | None = None  # monotonic time of the first request
        self.ended_at: float | None = None  # monotonic time of the first of those that are no USR2
        self.urgent = False
        self._first_interrupt: float | None = None
        self._raising = False

    @property
    def stopping(self) -> bool:
        """Whether anybody asked for an end."""
        return self.since is not None

    @property
    def wants_requeue(self) -> bool:
        """Whether the scheduler wants the machine back, and nobody wants an end."""
        return self.wanted == [signal.SIGUSR2]

    @property
    def ending(self) -> bool:
        """Whether somebody asked for an end, whoever else wants the machine back."""
        return signal.SIGTERM in self.wanted

    def ending_since(self, seconds: float) -> bool:
        """Whether an end was asked for so long ago."""
        return self.ended_at is not None and time.monotonic() - self.ended_at > seconds

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested at a request, and at once for one that came before: to wait for others meanwhile."""
        self._raising = True
        try:
            if self.stopping:
                raise StopRequested
            yield
        finally:
            self._raising = False

    @contextmanager
    def listening(self, *, to_the_end: bool = False) -> Iterator["StopRequests"]:
        """Own the signals while the context lasts. Only the main thread can.

        `to_the_end`: of the process, so they are ignored from then on. What came of the work stands by then, and
        a signal must not make another exit code of it.
        """
        before = {number: signal.getsignal(number) for number in (*_STOPS, signal.SIGUSR2)}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            del before[signal.SIGHUP]  # nohup: a closed terminal is not a request
        for number in before:
            signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if to_the_end else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        forward = signal.SIGUSR2 if number == signal.SIGUSR2 else signal.SIGTERM
        if forward not in self.wanted:
            self.wanted.append(forward)
        if self.since is None:
            self.since = now
        if forward == signal.SIGTERM and self.ended_at is None:
            self.ended_at = now
        if number == signal.SIGINT:
            if self._first_interrupt is None:
                self._first_interrupt = now
            self.urgent = self.urgent or now - self._first_interrupt >= _IMPATIENT_AFTER_S
        if self._raising:
            raise StopRequested
