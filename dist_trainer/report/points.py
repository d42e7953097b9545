"""A journal as curves: read line by line, without what a resume took back, few enough points to draw."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_trainer.adapters.records import is_count
from dist_trainer.diagnose.words import one_line
from dist_trainer.tracking.journal import iterate_journal

Numbers = NDArray[np.float64]
_MOST_METRICS = 200
_MOST_EVENTS = 2000  # of one kind; of more the newest
_LONGEST_NAME = 200  # two that are cut to the same would be one
_BUCKETS = 300
_LARGEST_DRAWN = 1e150
_KEPT_KINDS = ("saved", "started", "alarm", "straggler", "skipped", "bad_rows", "resized", "changed")


def can_be_drawn(values: Numbers) -> NDArray[np.bool_]:
    """Which of them are finite, and not so large that the length of an axis would not be."""
    return np.abs(values) < _LARGEST_DRAWN


@dataclass(frozen=True)
class Curve:
    """One metric over the steps, which rise; values may be NaN or infinite."""

    steps: NDArray[np.int64]
    values: Numbers

    @property
    def last(self) -> float:
        """The value at the last step."""
        return float(self.values[-1])

    def thinned(self) -> "Curve":
        """At most two points a bucket of steps, the lowest and the highest, so that no peak is lost."""
        drawable = can_be_drawn(self.values)
        steps, values = self.steps[drawable], self.values[drawable]
        if len(steps) <= 2 * _BUCKETS:
            return Curve(steps, values)
        edges = np.linspace(steps[0], steps[-1], _BUCKETS, endpoint=False)
        firsts = np.unique(np.searchsorted(steps, edges))
        kept = {0, len(steps) - 1}
        for first, last in zip(firsts, [*firsts[1:], len(steps)], strict=True):
            part = values[first:last]
            kept |= {int(first + part.argmin()), int(first + part.argmax())}
        rows = sorted(kept)
        return Curve(steps[rows], values[rows])


@dataclass
class Journal:
    """What rank 0's journal holds: curves by metric, events by kind, and what is to be said of the reading."""

    curves: dict[str, Curve] = field(default_factory=dict)
    events: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)  # of a kind the newest
    counts: Counter[str] = field(default_factory=Counter)  # of all events by kind
    rewound: int = 0  # logged steps that a resume took back: it went on from a checkpoint before them
    lines: int = 0
    last_heard: dict[int, float] = field(default_factory=dict)  # by attempt: the time of its last line
    problems: list[str] = field(default_factory=list)


def read(path: Path) -> Journal:
    """Stream rank 0's journal; sixteen bytes are kept of a point."""
    found, points = Journal(), _Points()
    if not path.exists():
        found.problems.append(f"journal/{path.name} is missing: there are no curves")
        return found
    for record, _ in iterate_journal(path):
        found.lines += 1
        found.last_heard[record["attempt"]] = record["time"]
        if record["kind"] == "metrics":
            points.add(record["step"], record["values"])
        elif record["kind"] in _KEPT_KINDS:
            if record["kind"] == "started" and is_count(record.get("first_step")):
                points.rewind(record["first_step"])
            found.counts[record["kind"]] += 1
            _keep(found.events.setdefault(record["kind"], []), record)
    found.problems += _torn(path, found.lines)
    if points.is_full:
        found.problems.append(
            f"journal/{path.name} has more than {_MOST_METRICS} metrics: the first are shown"
        )
    found.curves = dict(points.curves())
    found.rewound = points.rewound
    return found


def _torn(path: Path, lines: int) -> list[str]:
    """What of the file is no line of a journal."""
    newlines, last = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            newlines, last = newlines + chunk.count(b"\n"), chunk[-1:]
    found = [f"journal/{path.name}: its last line was not written to the end"] if last != b"\n" else []
    if newlines > lines:
        number = newlines - lines
        found.append(f"journal/{path.name}: {number:,} {'line' if number == 1 else 'lines'} cannot be read")
    return found


def _keep(events: list[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    events.append(record)
    if len(events) >= 2 * _MOST_EVENTS:
        del events[:_MOST_EVENTS]


class _Points:
    """Steps and values as they come."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[array[int], array[float]]] = {}
        self._taken_back: Counter[str] = Counter()
        self.is_full = False

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            found = self._of.get(name) or self._new(name)
            if found is not None:
                found[0].append(step)
                found[1].append(float(value))

    def rewind(self, step: int) -> None:
        """An attempt goes on from this step: what was logged after it is of a model that is gone."""
        for name, (steps, values) in self._of.items():
            kept = len(steps)
            while kept and steps[kept - 1] > step:  # they rise within an attempt
                kept -= 1
            self._taken_back[name] += len(steps) - kept
            del steps[kept:], values[kept:]

    @property
    def rewound(self) -> int:
        """How many points were taken back, of the metric that lost the most."""
        return max(self._taken_back.values(), default=0)

    def _new(self, name: str) -> "tuple[array[int], array[float]] | None":
        if len(self._of) >= _MOST_METRICS:
            self.is_full = True
            return None
        return self._of.setdefault(name, (array("q"), array("d")))

    def curves(self) -> Iterator[tuple[str, Curve]]:
        for name, (steps, values) in self._of.items():
            all_steps, all_values = np.array(steps, dtype=np.int64), np.array(values)
            if not len(all_steps):
                continue
            # of a step that came twice the last line counts: the first in an array that is turned round
            once, at = np.unique(all_steps[::-1], return_index=True)
            yield one_line(name, _LONGEST_NAME) or "no name", Curve(once, all_values[::-1][at])
