"""Which metrics belong into one picture, and what is said below it in numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dist_trainer.report.points import Curve, can_be_drawn

_LEFT_OUT = re.compile(r"epoch|straggler/.*|.*bad_rows")
_SPLITS = ("train", "val", "test")
_FIRST = ("loss", "accuracy", "learning_rate", "samples_per_s", "step_time_s", "data_wait_share", "grad_norm")
_MOST_FIGURES = 24
_WIDE = 50.0  # times between the median and the largest value: from there on the axis is logarithmic
UNITS = {
    "samples_per_s": "samples a second",
    "step_time_s": "step time, s",
    "data_wait_share": "share of time waiting for data",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "gpu_memory_gb": "GPU memory, GB",
}


@dataclass(frozen=True)
class Line:
    """One metric of one run: `run` is its number, `part` what sets it apart within the figure (train, val, ...)."""

    run: int
    part: str
    curve: Curve

    has_others: bool = False  # whether the figure has another part

    @property
    def style(self) -> str:
        """Training is drawn dashed and thin, what was measured without training solid."""
        return "dashed" if self.has_others and self.part in ("train", "median") else "solid"


@dataclass(frozen=True)
class Figure:
    """One picture: all lines over the steps."""

    name: str
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        """In words."""
        return UNITS.get(self.name, self.name)

    @property
    def is_log(self) -> bool:
        """Whether values are so far apart that small ones would lie on the axis; the rate never is."""
        values = np.concatenate([line.curve.thinned().values for line in self.lines])
        if self.name == "learning_rate" or not len(values) or values.min() <= 0:
            return False
        return bool(values.max() > _WIDE * np.median(values))


def figures(curves: Sequence[Mapping[str, Curve]]) -> tuple[list[Figure], int]:
    """Those of all runs, the most important first, and how many more there would be."""
    lines: dict[str, list[Line]] = {}
    for run, each in enumerate(curves):
        for metric, curve in each.items():
            if _LEFT_OUT.fullmatch(metric) or can_be_drawn(curve.values).sum() < 2:
                continue
            name, part = _split(metric)
            lines.setdefault(name, []).append(Line(run, part, curve))
    order = sorted(lines, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    found = [Figure(name, _told_apart(lines[name])) for name in order]
    return found[:_MOST_FIGURES], max(0, len(found) - _MOST_FIGURES)


def _told_apart(lines: Sequence[Line]) -> list[Line]:
    several = len({line.part for line in lines}) > 1
    ordered = sorted(lines, key=lambda line: (line.run, line.part))
    return [replace(line, has_others=several) for line in ordered]


def _split(metric: str) -> tuple[str, str]:
    """val/loss: loss, val. step_time_s/median: step_time_s, median."""
    first, slash, rest = metric.partition("/")
    if slash and first in _SPLITS:
        return rest, first
    return (first, rest) if metric in ("step_time_s/median", "step_time_s/slowest") else (metric, "")


def show_number(value: float | None) -> str:
    """Four digits that count; a long dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
