"""`dist-trainer report`: reads runs, draws, and writes one page with its pictures beside it.

runs/<name>/report/            another folder for several runs, or by --output
  index.html                   the page; it needs nothing else. It and its pictures carry a mark: see place.py
  loss.png ...                 its curves, a file each
  pictures/                    only in a run's own folder: what others put there, see given_pictures.py
  predictions-test.npz         only in a run's own folder: what --predict wrote, see shown_samples.py
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters.files import make_private_folder, replace_file, writing
from dist_trainer.diagnose.words import typed
from dist_trainer.errors import UsageError
from dist_trainer.report import facts
from dist_trainer.report.drawing import Drawn, draw_figure, draw_scatter, draw_series, draw_time_line
from dist_trainer.report.facts import FOLDER, Facts
from dist_trainer.report.figures import Figure, figures
from dist_trainer.report.page import Page, render
from dist_trainer.report.place import PAGE, check_place
from dist_trainer.report.predictions import Predictions
from dist_trainer.run_folder import RunFolder

_MOST_RUNS = 8


@dataclass(frozen=True)
class Written:
    """What was written where."""

    page: Path
    pictures: Sequence[Path]
    runs: Sequence[Facts]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        pictures = [str(path) for path in self.pictures]
        return {
            "page": str(self.page),
            "pictures": pictures,
            "runs": [facts.as_json(each) for each in self.runs],
        }

    @property
    def sentence(self) -> str:
        """One line."""
        of = f" of {len(self.runs)} runs" if len(self.runs) > 1 else ""
        number = len(self.pictures)
        beside = f", {number} picture{'s' if number > 1 else ''} beside it" if number else ""
        return f"report{of}: {typed(self.page)}{beside}"


def check(runs: Sequence[RunFolder]) -> None:
    """UsageError where these make no page."""
    if len({run.path for run in runs}) < len(runs):
        raise UsageError("a run is named twice; a report shows each once")
    if len(runs) > _MOST_RUNS:
        raise UsageError(
            f"a report shows at most {_MOST_RUNS} runs, got {len(runs)}; `dist-trainer sweep status` shows a "
            "sweep's cells as a table"
        )


def make(runs: Sequence[RunFolder], folder: Path) -> Written:
    """Read the runs and write the page into `folder`. UsageError where somebody else's files would be lost."""
    found = [facts.read(run) for run in runs]
    names = [each.name for each in found]
    chosen, left_out = figures([each.journal.curves for each in found])
    curves = [(figure, draw_figure(figure, names)) for figure in chosen]
    lines = [draw_time_line(each.time_line) if each.time_line.attempts else None for each in found]
    plots = [[_plot(one) for one in each.predictions] for each in found]
    page = Page(found, curves, left_out, lines, plots)
    pictures = _pictures(folder, curves, names, lines, plots)
    check_place([folder / PAGE, *pictures])
    with writing(folder):
        make_private_folder(folder)
        for path, drawn in pictures.items():
            replace_file(path, drawn.png)
        replace_file(folder / PAGE, render(page).encode(errors="replace"))
    return Written(folder / PAGE, list(pictures), found)


def predictions_file(run: RunFolder, split: str) -> Path:
    """Where a run's predictions that a page shows are."""
    return run.path / FOLDER / f"predictions-{split}.npz"


def _plot(one: Predictions) -> Drawn | None:
    if one.truth is None or one.said is None:
        return None
    return (draw_series if one.kind == "series" else draw_scatter)(one.truth, one.said)


def _pictures(
    folder: Path,
    curves: Sequence[tuple[Figure, Drawn]],
    names: Sequence[str],
    lines: Sequence[Drawn | None],
    plots: Sequence[Sequence[Drawn | None]],
) -> dict[Path, Drawn]:
    """What lies beside the page, by its file."""
    wanted = [(figure.name, drawn) for figure, drawn in curves]
    several = len(names) > 1
    for name, line, drawn_plots in zip(names, lines, plots, strict=True):
        of = f"-{name}" if several else ""
        wanted += [(f"attempts{of}", line)] if line else []
        wanted += [(f"predictions{of}", plot) for plot in drawn_plots if plot]
    found: dict[Path, Drawn] = {}
    for name, drawn in wanted:
        found[_free(folder, name, found)] = drawn
    return found


def _free(folder: Path, name: str, taken: Collection[Path]) -> Path:
    """A file's name of a metric's, whatever is in that."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "curve"
    for number in range(1, len(taken) + 2):
        path = folder / f"{plain}{f'-{number}' if number > 1 else ''}.png"
        if path not in taken:
            return path
    raise AssertionError("one of more names than there are files is free")
