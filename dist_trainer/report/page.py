"""The page itself: page.html filled in. Whatever comes from a run is text: jinja2 escapes all of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dist_trainer.jobs.table import duration
from dist_trainer.report.attempts import Attempt
from dist_trainer.report.drawing import LINES, Drawn
from dist_trainer.report.facts import Facts
from dist_trainer.report.figures import Figure, Line, show_number
from dist_trainer.report.points import can_be_drawn
from dist_trainer.report.settings import Difference, differences

_MOST_ATTEMPTS = 50
_SHOWN_RESULTS = 8  # in large letters; the others are below
_FIRST_RESULTS = ("test/accuracy", "test/loss", "val/accuracy", "val/loss")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """All that is on it; `lines` and `plots` are by run, and `plots` by the run's predictions."""

    runs: Sequence[Facts]
    curves: Sequence[tuple[Figure, Drawn]]
    left_out: int  # curves that would be too many
    lines: Sequence[Drawn | None]
    plots: Sequence[Sequence[Drawn | None]]


def render(page: Page) -> str:
    """The HTML document."""
    style = (_FOLDER / "page.css").read_text()
    names = [run.name for run in page.runs]
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            title=names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}",
            several=len(names) > 1,
            style=Markup(style),
            made=f"{datetime.now(_zone()):%Y-%m-%d %H:%M %Z}",
            zone=f"{datetime.now(_zone()):%Z}",
            differences=_differing(page.runs),
            results=_results(page.runs),
            shown=_SHOWN_RESULTS,
            numbers=[_numbers(figure, names) for figure, _ in page.curves],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": show_number,
        "percent": _percent,
        "duration": duration,
        "clock": _clock,
        "picture": _picture,
        "headline": _headline,
        "newest": _newest_attempts,
        "color": lambda number: number % len(LINES),
    }
    return environment


def _picture(drawn: Drawn | None) -> Markup:
    """An SVG of ours: it holds numbers alone."""
    return Markup(drawn.svg if drawn else "")


def _percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f}%"


def _clock(moment: float) -> str:
    # by the offset of now, also of a moment in another season: one zone is named for all
    return f"{datetime.fromtimestamp(moment, _zone()):%Y-%m-%d %H:%M:%S}" if moment else "not known"


def _zone() -> tzinfo | None:
    return datetime.now().astimezone().tzinfo


def _headline(results: Mapping[str, float]) -> list[tuple[str, float]]:
    """Those of the test first, then those of the validation, then all others."""
    first = [name for name in _FIRST_RESULTS if name in results]
    return [(name, results[name]) for name in [*first, *sorted(results.keys() - set(first))]]


def _newest_attempts(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    return attempts[-_MOST_ATTEMPTS:]


def _differing(runs: Sequence[Facts]) -> list[Difference]:
    return differences([run.settings for run in runs]) if len(runs) > 1 else []


def _results(runs: Sequence[Facts]) -> list[tuple[str, list[float | None]]]:
    """Each final metric with its value in all runs."""
    names = {name: 0.0 for run in runs for name in run.results}
    return [(name, [run.results.get(name) for run in runs]) for name, _ in _headline(names)]


def _numbers(figure: Figure, names: Sequence[str]) -> list[dict[str, Any]]:
    """Below a picture: each of its lines in numbers."""
    return [_in_numbers(line, names[line.run]) for line in figure.lines]


def _in_numbers(line: Line, name: str) -> dict[str, Any]:
    curve = line.curve.thinned()
    lowest, highest = int(curve.values.argmin()), int(curve.values.argmax())
    return {
        "run": line.run,
        "name": name,
        "part": line.part,
        "style": line.style,
        "last": line.curve.last,
        "lowest": float(curve.values[lowest]),
        "lowest_step": int(curve.steps[lowest]),
        "highest": float(curve.values[highest]),
        "highest_step": int(curve.steps[highest]),
        "left_out": int((~can_be_drawn(line.curve.values)).sum()),
    }
