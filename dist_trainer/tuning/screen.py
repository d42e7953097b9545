"""A range test as it is shown: what it cost, the curve in at most 80 columns, and the line to paste."""

import math
import textwrap
from collections.abc import Iterator

from rich.console import Console

from dist_trainer.diagnose.words import count
from dist_trainer.tuning.find import Found

_ROWS_A_DECADE = 2
_BAR = 40  # columns


def show(found: Found, console: Console) -> None:
    """Print it."""
    width = min(console.width, 100)
    _print(console, _cost(found), width)
    console.print()
    for line in _curve(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for note in found.notes:
        _print(console, note, width)
    if found.line is not None and found.curve.lowest is not None:
        lowest = found.curve.rates[found.curve.lowest]
        _print(
            console,
            f"a tenth of {lowest:.1e}, where the smoothed loss is lowest; the line for the YAML:",
            width,
        )
        console.print(found.line, markup=False, highlight=False, soft_wrap=True)  # to be pasted as it stands


def _print(console: Console, text: str, width: int) -> None:
    for line in textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cost(found: Found) -> str:
    trained, tried = found.trained, found.tried
    last = tried.at(len(found.curve.losses) - 1)
    how = f"to {last:.1e}, where the loss diverged" if found.diverged else f"to {last:.1e}"
    steps, ranks = count(len(trained.losses), "step"), count(trained.world_size, "rank")
    return (
        f"{found.run}: rates from {tried.lowest:.1e} {how}; it cost {steps} of {found.samples} samples with {ranks}, "
        f"{trained.seconds:.1f} s, and nothing of it is kept"
    )


def _curve(found: Found) -> Iterator[str]:
    """A row for every half power of ten, and one for the lowest point and for the suggestion."""
    curve = found.curve
    places = _places(found)
    shown = [curve.smoothed[place] for place in places]
    low, high = min(shown), min(max(shown), curve.start + (curve.start - min(shown)))
    yield f"{'rate':>8}  {'loss':>9}"
    for place in places:
        value = curve.smoothed[place]
        share = 1.0 if high <= low else min(1.0, (value - low) / (high - low))
        bar = "━" * max(1, round(_BAR * share))
        yield f"{curve.rates[place]:>8.1e}  {value:>9.4g}  {bar:<{_BAR}}  {_mark(found, place)}".rstrip()


def _places(found: Found) -> list[int]:
    rates = found.curve.rates
    per_row = (found.tried.steps - 1) / found.tried.decades / _ROWS_A_DECADE
    rows = range(math.ceil(len(rates) / per_row) + 1)
    regular = {min(len(rates) - 1, round(row * per_row)) for row in rows}
    marked = {place for place in (found.curve.lowest, _suggested(found)) if place is not None}
    apart = {each for each in regular if all(abs(each - other) >= per_row / 2 for other in marked)}
    return sorted(apart | marked)


def _suggested(found: Found) -> int | None:
    if found.curve.suggested is None:
        return None
    wanted = math.log(found.curve.suggested)
    rates = found.curve.rates
    return min(range(len(rates)), key=lambda place: abs(math.log(rates[place]) - wanted))


def _mark(found: Found, place: int) -> str:
    if place == found.curve.lowest:
        return "lowest"
    return "suggested" if place == _suggested(found) else ""
