"""The learning-rate range test, in numbers: which rates are tried, when the loss has diverged, which rate to take.

Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017 (arXiv:1506.01186), section 3.3: one short
training in which the rate grows from a very low to a very high one. Here it grows exponentially. The rate suggested
is a tenth of the one at which the smoothed loss is lowest: there the loss still falls fast, while at the lowest
point itself the rate is already too high to train with for long.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from dist_trainer.errors import UsageError

FEWEST_STEPS = 20
NARROWEST = 2.0  # from the lowest to the highest rate
BELOW_LOWEST = 10.0
_AT_REST = 0.1  # of the steps: the rate is so low there that only the samples make the loss differ
_FEWEST_AT_REST = 5
_MEMORY = 0.7  # of the running mean that is watched while the test runs
_SMOOTHED_OVER = 0.2  # powers of ten of the rate
_CLEAR = 4.0  # standard errors: the lowest of many means lies two or three below by chance
_OF_DIFFERENCES = (
    0.954  # the median size of the difference of two normal values, in their standard deviations
)


@dataclass(frozen=True)
class Rates:
    """The rates to try: `steps` of them from `lowest` to `highest`, each the same factor above the last."""

    lowest: float = 1e-6
    highest: float = 10.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise UsageError(
                f"--min must be more than 0 and less than --max, got {self.lowest:g} and {self.highest:g}"
            )
        if self.highest < NARROWEST * self.lowest:
            raise UsageError(
                f"--max must be at least {NARROWEST:g} times --min, for a curve, got {self.lowest:g} and "
                f"{self.highest:g}"
            )
        if self.steps < FEWEST_STEPS:
            raise UsageError(f"--steps must be at least {FEWEST_STEPS}, for a curve, got {self.steps}")

    @property
    def decades(self) -> float:
        """Powers of ten from the lowest to the highest."""
        return math.log10(self.highest / self.lowest)

    def at(self, step: int) -> float:
        """Of the update with this number, from 0."""
        return float(self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1)))

    @property
    def at_rest(self) -> int:
        """How many losses there are before the rate matters."""
        return max(_FEWEST_AT_REST, round(_AT_REST * self.steps))


@dataclass
class Divergence:
    """Is told each step's loss; true from the step on at which it has diverged.

    The running mean of the loss has risen above where it began, by as much as that was, as it had fallen since, or as
    the first losses differ among themselves, whichever is the most; or a loss is not a number.
    """

    at_rest: int
    _first: list[float] = field(default_factory=list)
    _mean: float = 0.0
    _lowest: float = math.inf

    def add(self, loss: float) -> bool:
        """Whether it has, with this loss."""
        if not math.isfinite(loss):
            return True
        if len(self._first) < self.at_rest:
            self._first.append(loss)
            self._mean = fmean(self._first)
            return False
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        self._lowest = min(self._lowest, self._mean)
        start = fmean(self._first)
        rise = max(abs(start), start - self._lowest, max(self._first) - min(self._first))
        return self._mean > start + rise


@dataclass(frozen=True)
class Curve:
    """What the test found: the loss after an update at each rate, as it was and smoothed."""

    rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]
    start: float  # the loss before the rate matters
    lowest: int | None  # where the smoothed loss is lowest; None where it never fell clearly below the start

    @property
    def suggested(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is lowest."""
        return None if self.lowest is None else self.rates[self.lowest] / BELOW_LOWEST


def curve_of(tried: Rates, losses: Sequence[float]) -> Curve:
    """Of the losses of all steps, the first of which none of the rates had any part in.

    The loss of step k+1 is the first one that the rate of step k shows in. What is not finite is left out.
    """
    finite = [loss for loss in losses[1:] if math.isfinite(loss)]
    rates = [tried.at(step) for step in range(len(finite))]
    width = max(1.0, _SMOOTHED_OVER * (tried.steps - 1) / tried.decades)
    smoothed = smooth(finite, width)
    rest = finite[: tried.at_rest]
    start, lowest = fmean(rest), min(range(len(finite)), key=smoothed.__getitem__)
    kernel_values = min(
        2 * math.sqrt(math.pi) * width, len(finite)
    )  # as many as a mean with its weights is worth
    error = _noise(finite[: max(lowest, len(rest))]) * math.sqrt(1 / len(rest) + 1 / kernel_values)
    fell = lowest >= tried.at_rest and start - smoothed[lowest] > _CLEAR * error
    return Curve(rates, finite, smoothed, start, lowest if fell else None)


def _noise(losses: Sequence[float]) -> float:
    """The standard deviation by which a loss differs from step to step, whatever its course."""
    return median(abs(later - earlier) for earlier, later in pairwise(losses)) / _OF_DIFFERENCES


def smooth(values: Sequence[float], width: float) -> list[float]:
    """Each with its neighbours on both sides, weighted by a Gaussian of this standard deviation, in positions."""
    reach = min(math.ceil(3 * width), len(values))
    weights = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(-reach, reach + 1)]
    found = []
    for middle in range(len(values)):
        near = range(max(0, middle - reach), min(len(values), middle + reach + 1))
        share = [weights[place - middle + reach] for place in near]
        found.append(sum(w * values[place] for w, place in zip(share, near, strict=True)) / sum(share))
    return found
