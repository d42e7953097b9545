"""Where a step's time went, and how the slowest rank compares with the median one: from what a run measured."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_trainer.errors import DataError
from dist_trainer.report.points import Curve

# as training/phases.py names them; importing that would import torch
PHASES = ("data wait", "forward", "backward", "communication not hidden", "optimizer", "bookkeeping")
MEDIAN, SLOWEST = "step_time_s/median", "step_time_s/slowest"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Phase:
    """Milliseconds a step of one phase, and its share of the mean step of all ranks."""

    name: str
    median_ms: float
    slowest_ms: float
    slowest_rank: int
    share: float


@dataclass(frozen=True)
class Phases:
    """profile/phases.json as a table; its steps are the first and the last one."""

    steps: tuple[int, int]
    ranks: int
    rows: Sequence[Phase]
    whole: Phase


@dataclass(frozen=True)
class StepTimes:
    """The time of a step over the whole run, on the median and on the slowest rank."""

    median_ms: float
    slowest_ms: float
    worst_times: float  # the largest ratio between the two, and where
    worst_step: int

    @property
    def times(self) -> float:
        """How many times slower the slowest rank is, usually."""
        return self.slowest_ms / max(self.median_ms, 1e-9)


def read_phases(folder: Path) -> Phases | None:
    """profile/phases.json; None where the run made no profile. ValueError where it is not what a run writes."""
    path = folder / "profile" / "phases.json"
    if not path.exists():
        return None
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path}: larger than {_MOST_BYTES >> 20} MB")
    found = json.loads(path.read_bytes())
    first, last = map(int, found["steps"])
    ranks = [{name: float(rank[name]) for name in PHASES} for rank in found["ranks"]]
    if not ranks or last < first:
        raise DataError(f"{path}: no rank, or no step")
    return _table(ranks, (first, last))


def _table(ranks: Sequence[Mapping[str, float]], steps: tuple[int, int]) -> Phases:
    number = steps[1] - steps[0] + 1
    wholes = [sum(rank.values()) for rank in ranks]
    every = sum(wholes) or 1.0

    def row(name: str, seconds: Sequence[float]) -> Phase:
        each_ms = [1000 * value / number for value in seconds]
        slowest = max(range(len(each_ms)), key=each_ms.__getitem__)
        return Phase(name, statistics.median(each_ms), each_ms[slowest], slowest, sum(seconds) / every)

    rows = [row(name, [rank[name] for rank in ranks]) for name in PHASES]
    return Phases(steps, len(ranks), rows, row("whole step", wholes))


def step_times(curves: Mapping[str, Curve]) -> StepTimes | None:
    """From the journal; None where it has none, as with one rank."""
    if MEDIAN not in curves or SLOWEST not in curves:
        return None
    steps, left, right = np.intersect1d(curves[MEDIAN].steps, curves[SLOWEST].steps, return_indices=True)
    median, slowest = curves[MEDIAN].values[left], curves[SLOWEST].values[right]
    good = np.isfinite(median) & np.isfinite(slowest) & (median > 0)
    if not good.any():
        return None
    steps, median, slowest = steps[good], median[good], slowest[good]
    worst = int((slowest / median).argmax())
    return StepTimes(
        1000 * float(np.median(median)),
        1000 * float(np.median(slowest)),
        float(slowest[worst] / median[worst]),
        int(steps[worst]),
    )


def stragglers(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was said of ranks that the others waited for, newest last."""
    return [f"step {event.get('step')}: {event['message']}" for event in events if "message" in event][-10:]
