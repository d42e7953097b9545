"""A rank that is slower than the others at every step, which makes all of them wait: who, how much, and why."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 6  # steps; two windows in a row name a rank, so at the latest 16 steps after it became slow
SLOWER = 2.0  # times the median of the others
LEAST_S = 0.01  # a step; less is what rank 0 writes, and noise


@dataclass(frozen=True)
class Straggler:
    """One rank's median step against the median of the other ranks' medians; `data_share` is of its own."""

    rank: int
    work_s: float
    others_s: float
    data_share: float

    @property
    def times(self) -> float:
        """How many times slower."""
        return self.work_s / max(self.others_s, 1e-9)

    def describe(self, node: str) -> str:
        """One sentence."""
        part = self.data_share
        why = f", {part:.0%} of it waiting for data" if part >= 0.5 else ", not for want of data"
        return (
            f"rank {self.rank} on {node} is {self.times:.1f} times slower than the others, which wait for it: "
            f"{1000 * self.work_s:.3g} ms of work a step against {1000 * self.others_s:.3g} ms{why}"
        )


class Stragglers:
    """Looks at every step's work by rank; the same on each rank."""

    def __init__(self) -> None:
        self._work: list[Sequence[float]] = []
        self._data: list[Sequence[float]] = []
        self._is_first = True
        self._suspect: int | None = None
        self.named: int | None = None

    def add(self, work_s: Sequence[float], data_s: Sequence[float]) -> Straggler | None:
        """A straggler that was not named yet, if the window that ends here shows one; seconds by rank."""
        if self._is_first and any(work_s):  # it also compiled and warmed up
            self._is_first = False
            return None
        if len(work_s) < 2 or not all(work_s):
            return None
        self._work.append(work_s)
        self._data.append(data_s)
        if len(self._work) < WINDOW:
            return None
        found = self._slowest()
        self._work.clear()
        self._data.clear()
        return self._judge(found)

    def _judge(self, found: Straggler | None) -> Straggler | None:
        before, self._suspect = self._suspect, found.rank if found else None
        if found is None or found.rank != before:
            if found is None and before is None:
                self.named = None  # for two windows: it is over, and would be named again
            return None
        if found.rank == self.named:
            return None
        self.named = found.rank
        return found

    def _slowest(self) -> Straggler | None:
        medians = [statistics.median(times) for times in zip(*self._work, strict=True)]
        rank = max(range(len(medians)), key=medians.__getitem__)
        others_s = statistics.median(medians[:rank] + medians[rank + 1 :])
        if medians[rank] < max(SLOWER * others_s, others_s + LEAST_S):
            return None
        data_s = statistics.median(times[rank] for times in self._data)
        return Straggler(rank, medians[rank], others_s, data_s / medians[rank])
