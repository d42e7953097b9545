"""How things are measured: in turns, several times, and told as medians and ratios of one run.

A machine is faster in one minute than in the next, so each round measures every variant once, in turning order,
and a ratio compares what was measured in the same round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Sample = Mapping[str, float]  # what one measurement of a variant gives, by quantity


@dataclass(frozen=True)
class Quantity:
    """What is measured: its name, how it is shown, and whether a ratio says something."""

    name: str
    unit: str
    scale: float = 1.0  # from the sample's unit to the shown one
    as_ratio: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio`: to the baseline in the same round, the median over all rounds."""

    measurement: str
    variant: str
    quantity: str
    value: float  # the median
    unit: str
    lowest: float
    highest: float
    ratio: float | None = None


def in_turns(
    variants: Mapping[str, Callable[[], Sample]], rounds: int, *, tell: Callable[[str], None] = print
) -> dict[str, list[Sample]]:
    """The samples of each variant, one a round; each round begins with another variant."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(variants[name]())
            shown = ", ".join(f"{key} {value:.4g}" for key, value in samples[name][-1].items())
            tell(f"round {number + 1} of {rounds}, {name}: {shown}")
    return samples


def rows(
    measurement: str,
    samples: Mapping[str, list[Sample]],
    quantities: list[Quantity],
    *,
    baseline: str | None = None,
) -> list[Row]:
    """A row for each variant and quantity that was measured."""
    found = []
    for quantity in quantities:
        for variant, of_variant in samples.items():
            values = [sample[quantity.name] for sample in of_variant if quantity.name in sample]
            if not values:
                continue
            ratio = None
            if baseline is not None and quantity.as_ratio and variant != baseline:
                bases = [sample[quantity.name] for sample in samples[baseline]]
                ratio = median(value / base for value, base in zip(values, bases, strict=True))
            shown = sorted(value * quantity.scale for value in values)
            middle = median(shown)
            found.append(
                Row(measurement, variant, quantity.name, middle, quantity.unit, shown[0], shown[-1], ratio)
            )
    return found


def as_table(found: list[Row]) -> list[str]:
    """Markdown."""
    lines = [
        "| measured | variant | median | lowest to highest | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in found:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        middle, spread = f"{row.value:.3g} {row.unit}", f"{row.lowest:.3g} to {row.highest:.3g}"
        lines.append(f"| {row.measurement}: {row.quantity} | {row.variant} | {middle} | {spread} | {ratio} |")
    return lines
