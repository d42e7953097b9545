"""How long this rank works at a step, as the others see it: from asking for its data to the step's end, without
the time in which it waits for their gradients."""

import time

import torch


class StepClock:
    """Times one step after another. On a GPU the work up to the reduction is what the device took for it: the
    host only queues it, and waits for its own device as for the others."""

    def __init__(self, device: torch.device) -> None:
        self.last = (0.0, 0.0)  # seconds of work and of waiting for data, of the last whole step
        self._events = _Events() if device.type == "cuda" else None
        self._work_s = self._data_s = self._ahead_s = 0.0
        self._since: float | None = None  # when it began to work; None while it waits

    def begin(self) -> None:
        """A step begins: its data is asked for."""
        self._work_s = self._data_s = self._ahead_s = 0.0
        self._since = time.perf_counter()

    def data_is_there(self) -> None:
        """The wait for data is over."""
        if self._since is not None:
            self._data_s = time.perf_counter() - self._since
        if self._events:
            self._events.first.record()

    def read_ahead(self, seconds: float) -> None:
        """The next step's data took so long; on a GPU after `waits`, while the device works."""
        self._ahead_s += seconds
        if self._since is None:
            self._work_s += seconds

    @property
    def device_works(self) -> bool:
        """Whether the device still does what it was given; a CPU never does."""
        return self._events is not None and not self._events.are_done()

    def waits(self) -> None:
        """All that is left of the backward pass is with the others. Called again where a step has several."""
        if self._since is None:
            return
        self._work_s += time.perf_counter() - self._since
        self._since = None
        if self._events:
            self._events.last.record()

    def goes_on(self) -> None:
        """What was waited for is there."""
        if self._since is None:
            self._since = time.perf_counter()

    def device_is_done(self) -> None:
        """The device has been waited for: what it took for the work so far is known."""
        if self._events:
            self._work_s = max(self._work_s, self._data_s + self._events.seconds())

    def end(self) -> None:
        """The step is over; what is done until the next one begins does not count."""
        if self._since is not None:
            self._work_s += time.perf_counter() - self._since
        self._since = None
        self.last = (self._work_s, self._data_s + self._ahead_s)


class _Events:
    """What lies between two points of the device's queue."""

    def __init__(self) -> None:
        self.first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def are_done(self) -> bool:
        """Whether the device has come to the last point."""
        return bool(self.last.query())  # type: ignore[no-untyped-call]

    def seconds(self) -> float:
        """After the device was waited for."""
        return float(self.first.elapsed_time(self.last)) / 1000
