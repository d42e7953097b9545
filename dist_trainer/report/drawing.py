"""Pictures by matplotlib: as SVG for the page, whose colours follow the reader's light or dark, and as PNG files.

No text of a run goes into an SVG: names are written by the page, which escapes them.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dist_trainer.report.attempts import TimeLine
from dist_trainer.report.figures import Figure
from dist_trainer.report.points import can_be_drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LINES = (
    "#2563eb",
    "#d97706",
    "#059669",
    "#db2777",
    "#7c3aed",
    "#0891b2",
    "#65a30d",
    "#b91c1c",
)  # by run, in turn
# none of them a line's: an SVG's colours become the page's variables by what they are
KINDS = {"good": "#047857", "asked": "#b45309", "bad": "#dc2626", "open": "#1d4ed8"}
_INK, _FAINT = "#1c1917", "#d6d3d1"
_INCHES = (5.3, 3.0)  # 380 points wide: text keeps its size on a phone
_DOTS_PER_INCH = 160
_TITLE_INCHES = 0.3
_MOST_POINTS = 1500
_WRITER = "dist-trainer report"  # place.py knows our files by it
# what the page calls each colour
_VARIABLES = {
    _INK: "--ink",
    _FAINT: "--rule",
    **{color: f"--line-{number}" for number, color in enumerate(LINES)},
    **{color: f"--{kind}" for kind, color in KINDS.items()},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dist_trainer",
    "text.parse_math": False,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Drawn:
    """One picture both ways."""

    svg: str
    png: bytes


def draw_figure(figure: Figure, runs: Sequence[str]) -> Drawn:
    """The curves of one figure; the PNG has a title and a legend."""

    def draw(axes: "Axes") -> None:
        for line in figure.lines:
            curve = line.curve.thinned()
            few = len(curve.steps) <= 40 and line.style == "solid"
            axes.plot(
                curve.steps,
                curve.values,
                color=LINES[line.run % len(LINES)],
                linestyle="--" if line.style == "dashed" else "-",
                linewidth=1.1 if line.style == "dashed" else 1.8,
                marker="o" if few else None,
                markersize=3.2,
                label=_label(runs[line.run] if len(runs) > 1 else "", line.part),
            )
        if figure.is_log:
            _log_scale(axes)
        _whole_steps(axes)

    return _drawn(draw, figure.title, has_legend=len(figure.lines) > 1)


def draw_time_line(line: TimeLine) -> Drawn:
    """Attempts as bars over minutes since the first start, one a row, checkpoints as ticks below."""
    known = [each for each in line.attempts if each.start]
    first = min((each.start for each in known), default=0.0)
    unit, name = _unit(max((each.seen for each in known), default=1.0) - first)
    shown = known[-12:]

    def draw(axes: "Axes") -> None:
        for row, each in enumerate(shown):
            left, width = (each.start - first) / unit, max(each.lasted_s / unit, 0.0)
            axes.barh(row, width, left=left, height=0.6, color=KINDS[each.kind])
        begins = min((each.start for each in shown), default=0.0)
        marks = [(moment - first) / unit for moment in line.saved if moment >= begins]
        marks = marks[:: max(1, len(marks) // 200)]
        axes.plot(marks, [len(shown) - 0.35] * len(marks), "|", color=_INK, markersize=7, markeredgewidth=0.8)
        axes.set_yticks(range(len(shown)), [str(each.number) for each in shown])
        axes.set_ylim(len(shown), -0.6)
        axes.set_xlabel(f"{name} since the first start")
        axes.grid(axis="y", visible=False)

    return _drawn(draw, "attempts", height=1.1 + 0.28 * len(shown))


def draw_series(truth: NDArray[Any], said: NDArray[Any]) -> Drawn:
    """The first step ahead of each forecast over what came."""

    def draw(axes: "Axes") -> None:
        rows = np.arange(len(truth))[-_MOST_POINTS:]
        axes.plot(rows, _drawable(truth[rows, 0]), color=_INK, linewidth=1.4, label="truth")
        axes.plot(rows, _drawable(said[rows, 0]), "--", color=LINES[0], linewidth=1.6, label="forecast")
        axes.set_xlabel("row")

    return _drawn(draw, "forecast against truth", has_legend=True)


def draw_scatter(truth: NDArray[Any], said: NDArray[Any]) -> Drawn:
    """Each prediction over its target; on the line they are the same."""
    truth, said = truth.reshape(-1), said.reshape(-1)
    good = can_be_drawn(truth) & can_be_drawn(said)
    picked = np.flatnonzero(good)[:: max(1, int(good.sum()) // _MOST_POINTS)]

    def draw(axes: "Axes") -> None:
        if len(picked):
            ends = [truth[picked].min(), truth[picked].max()]
            axes.plot(ends, ends, color=_FAINT, linewidth=1.5)
        axes.plot(truth[picked], said[picked], "o", color=LINES[0], markersize=3, alpha=0.6)
        axes.set(xlabel="truth", ylabel="prediction")

    return _drawn(draw, "prediction against truth")


def _drawable(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(can_be_drawn(values), values, np.nan)


def _label(*words: str) -> str:
    return " ".join(word for word in words if word) or "value"


def _unit(seconds: float) -> tuple[float, str]:
    return (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 10_800 else (3600.0, "hours")


def _whole_steps(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, place: _short(step)))
    axes.set_xlabel("step")


def _log_scale(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(step: float) -> str:
    """12,500 as 12.5k."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(step) >= least:
            return f"{step / size:g}{letter}"
    return f"{step:g}"


def _drawn(
    draw: Callable[["Axes"], None], title: str, *, height: float = _INCHES[1], has_legend: bool = False
) -> Drawn:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(cast(Any, _STYLE)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks, an axis of one value
        canvas = Canvas(figsize=(_INCHES[0], height), layout="constrained")
        axes = canvas.subplots()
        draw(axes)
        canvas.draw_without_rendering()  # the layout once: each picture would make it twice
        canvas.set_layout_engine("none")
        svg = _svg(canvas)
        _make_room_above(canvas, axes)
        axes.set_title(title, loc="left", fontsize=12)
        handles, labels = axes.get_legend_handles_labels()
        if has_legend and len(handles) <= 16:
            axes.legend(handles, labels, fontsize=8, frameon=False)
        buffer = io.BytesIO()
        canvas.savefig(
            buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": _WRITER}
        )
        return Drawn(svg, buffer.getvalue())


def _make_room_above(canvas: "Canvas", axes: "Axes") -> None:
    """For a title: a higher picture, with all else of the size that it was."""
    width, height = canvas.get_size_inches()
    shrinks = height / (height + _TITLE_INCHES)
    place = axes.get_position()
    canvas.set_size_inches(width, height + _TITLE_INCHES)
    axes.set_position((place.x0, place.y0 * shrinks, place.width, place.height * shrinks))


def _svg(canvas: "Canvas") -> str:
    """The element alone, without ids that another picture on the page has too, coloured by the page's variables."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"| version="1.1"| xmlns:xlink="[^"]*"', "", text, count=3)
    text = re.sub(r' id="[a-zA-Z.\d]+_\d+"', "", text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var({name})")
    text = re.sub(r"\n\s*", "\n", text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()
