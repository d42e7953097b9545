"""The values of a sweep's cells: what `--grid` says, as a product or as a number of draws."""

import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.messages import shown
from dist_trainer.config.yaml_rules import MAX_DEPTH, read_yaml, write_yaml
from dist_trainer.errors import ConfigError
from dist_trainer.sweep_folder import MAX_CELLS

Values = dict[str, Any]
_RANGE = re.compile(r"(-?\d+):(-?\d+)")
_DRAWN = re.compile(r"(uniform|loguniform)\(([^,()]+),([^,()]+)\)")
_DIGITS = 6  # of a drawn number: enough for any search, and short enough to be read
_WHOLE_SWEEP = {
    "name": "a cell is named after the sweep; give the sweep a name with --name",
    "tracking.uri": "all cells of a sweep are children of one run in MLflow",
    "tracking.experiment": "all cells of a sweep are children of one run in MLflow",
    "slurm": "all cells of a sweep are elements of one job",
}


@dataclass(frozen=True)
class Axis:
    """One key of a grid: its values, or how they are drawn."""

    key: str
    text: str  # as it was given
    values: Sequence[Any] = ()
    draw: Callable[[random.Random], Any] | None = None

    def drawn(self, source: random.Random) -> Any:
        """A value at random."""
        if self.draw is not None:
            return self.draw(source)
        return self.values[int(source.random() * len(self.values))]


def parse_grid(texts: Sequence[str]) -> list[Axis]:
    """Each KEY=VALUES of `--grid`: v1,v2 | first:end | uniform(a,b) | loguniform(a,b). ConfigError lists all
    that is wrong."""
    axes, problems = [], []
    for text in texts:
        try:
            axes.append(_axis(text))
        except ConfigError as error:
            problems.append(str(error))
    for one, other in itertools.combinations(axes, 2):
        if _within(one.key, other.key) or _within(other.key, one.key):
            problems.append(f"--grid {other.text}: {other.key} is in --grid {one.text} already; keep one")
    if not texts:
        problems.append(
            "a sweep needs --grid KEY=VALUES, such as --grid optimizer.lr=0.1,0.03 --grid seed=0:5"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return axes


def combinations(axes: Sequence[Axis]) -> list[Values]:
    """Every combination; the last key changes fastest. ConfigError for what has no end, or too many cells."""
    for axis in axes:
        if axis.draw is not None:
            raise ConfigError(
                f"--grid {axis.text}: a range is drawn from; say how many cells with --random N"
            )
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        raise ConfigError(
            f"the grid has {count} cells, and a sweep at most {MAX_CELLS}; draw some of them with --random N"
        )
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(a.values for a in axes))]


def drawn(axes: Sequence[Axis], count: int, *, seed: int) -> list[Values]:
    """`count` different combinations at random, the same ones for the same seed and grid."""
    if count > MAX_CELLS:
        raise ConfigError(f"--random must be at most {MAX_CELLS}, got {count}")
    endless = any(axis.draw is not None for axis in axes)
    there = math.prod(len(axis.values) for axis in axes if axis.draw is None)
    if not endless and count > there:
        raise ConfigError(f"--random must be at most {there}, the cells of the grid, got {count}")
    source, found = random.Random(seed), dict[str, Values]()
    for _ in range(1000 * count):
        if len(found) == count:
            return list(found.values())
        values = {axis.key: axis.drawn(source) for axis in axes}
        found.setdefault(repr(values), values)
    raise ConfigError(f"--random {count}: the ranges are too narrow for so many different cells")


def as_overrides(values: Values) -> list[str]:
    """The values as the command line's key=value, which read back equal."""
    return [f"{key}={write_yaml(value)}" for key, value in values.items()]


def _axis(text: str) -> Axis:
    key, equals, written = text.partition("=")
    key, written = key.strip(), written.strip()
    path = key.split(".")
    if not equals or not all(path) or len(path) > MAX_DEPTH or not written:
        raise ConfigError(f"--grid is written KEY=v1,v2 or KEY=0:5, got {text!r}")
    for refused, reason in _WHOLE_SWEEP.items():
        if _within(key, refused) or (_within(refused, key) and "." in refused):
            raise ConfigError(f"--grid {text}: {key} cannot differ among cells: {reason}")
    if match := _DRAWN.fullmatch(written):
        return Axis(key, text, draw=_distribution(text, match[1], match[2], match[3]))
    if match := _RANGE.fullmatch(written):
        return Axis(key, text, _range(text, int(match[1]), int(match[2])))
    return Axis(key, text, _listed(text, written))


def _range(text: str, first: int, end: int) -> Sequence[int]:
    if not 0 < end - first <= MAX_CELLS:
        raise ConfigError(
            f"--grid {text}: a range is first:end, without the end, of at most {MAX_CELLS} values"
        )
    return range(first, end)


def _listed(text: str, written: str) -> Sequence[Any]:
    tree, problems = read_yaml(f"[{written}]", "--grid", lines=False)
    if tree is None or problems or not isinstance(tree.value, list):
        reason = problems[0].message if problems else "is no list of values"
        raise ConfigError(f"--grid {text}: {reason}")
    values = tree.plain()
    for number, value in enumerate(values):
        if any(_same(value, other) for other in values[:number]):
            raise ConfigError(f"--grid {text}: {shown(value)} is given twice")
    if not values:
        raise ConfigError(f"--grid {text}: there are no values")
    return list(values)


def _distribution(text: str, kind: str, low: str, high: str) -> Callable[[random.Random], float]:
    try:
        first, last = float(low), float(high)
    except ValueError:
        raise ConfigError(f"--grid {text}: {kind} takes two numbers") from None
    if not (math.isfinite(first) and math.isfinite(last) and first < last):
        raise ConfigError(f"--grid {text}: {kind} takes a smaller and a larger number")
    if kind == "uniform":
        return lambda source: _short(first + (last - first) * source.random())
    if first <= 0:
        raise ConfigError(f"--grid {text}: loguniform takes numbers > 0")
    return lambda source: _short(first * (last / first) ** source.random())


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def given(axes: Sequence[Axis]) -> dict[str, str]:
    """Each key's values as they were given."""
    return {axis.key: axis.text.partition("=")[2].strip() for axis in axes}


def given_twice(axes: Sequence[Axis], overrides: Sequence[str]) -> list[str]:
    """A problem for each single value of the command line that the grid would replace."""
    keys = [(text, text.partition("=")[0].strip()) for text in overrides]
    return [
        f"{text}: --grid {axis.text} gives {axis.key} as well; keep one of them"
        for text, key in keys
        for axis in axes
        if _within(key, axis.key)
    ]
