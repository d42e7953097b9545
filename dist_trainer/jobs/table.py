"""The list of runs and jobs as a table: a line for each, and what else there is to say under it or, if wide, beside.

Widths follow what is there; only names are ever cut, in their middle, since they differ at the end.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dist_trainer.jobs.listing import Listing
from dist_trainer.jobs.standing import Standing

_ROOM_FOR_NOTES = 50  # with that much left, notes stand beside
_GAP = "  "
_SHORTEST_NAME = 12
_STYLES = {
    "running": "green",
    "ending": "green",
    "starting": "cyan",
    "pending": "yellow",
    "preempted": "yellow",
    "requeued": "yellow",
    "held": "magenta",
    "finished": "bold green",
    "failed": "bold red",
    "do-not-requeue": "bold red",
    "lost": "bold red",
}
_HEAD = ("RUN", "JOB", "STATE", "STEP", "LOSS", "LEFT", "NODES")
_RIGHT = {"STEP", "LOSS", "LEFT"}


def show_jobs(listing: Listing, console: Console, *, where: str) -> None:
    """Print it; `where` is the folder of runs, for the case that none is there."""
    if listing.rows:
        _show_table(listing.rows, console)
    else:
        _say(console, f"no run in {where} is under way or has ended within a day")
    if listing.hidden:
        counts = ", ".join(f"{count} {state}" for state, count in listing.hidden.items())
        _say(console, f"{counts} earlier: --all", style="dim")
    if listing.others:
        _say(console, "\njobs of yours that belong to no run here:")
        _show_table(listing.others, console)
    if listing.problem:
        _say(console, listing.problem, style="yellow")


def duration(seconds: float | None) -> str:
    """About how long: 40 s, 12 min, 3 h 05, 2 d 4 h."""
    if seconds is None:
        return ""
    minutes, hours, days = round(seconds / 60), round(seconds / 60) // 60, round(seconds / 3600) // 24
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60:02d}"
    return f"{days} d {round(seconds / 3600) % 24} h"


def steps(row: Standing) -> str:
    """Step of steps, as far as it is known."""
    if row.step is None:
        return f"0/{row.total_steps}" if row.total_steps else ""
    return f"{row.step}/{row.total_steps}" if row.total_steps else str(row.step)


def style_of(state: str) -> str:
    """The colour of a state."""
    return _STYLES.get(state, "")


def _show_table(rows: Sequence[Standing], console: Console) -> None:
    cells = [_HEAD, *(_cells(row) for row in rows)]
    used = [number for number in range(len(_HEAD)) if any(line[number] for line in cells[1:])]
    widths = {number: max(len(line[number]) for line in cells) for number in used}
    rest = sum(widths[number] for number in used[1:]) + len(_GAP) * len(used)
    beside = console.width - widths[0] - rest >= _ROOM_FOR_NOTES
    widths[0] = min(widths[0], max(_SHORTEST_NAME, console.width - rest + len(_GAP)))
    indent = sum(widths.values()) + len(_GAP) * len(used) if beside else len(_GAP)
    console.print(_line(_HEAD, widths, head=True), soft_wrap=True)
    for row, line in zip(rows, cells[1:], strict=True):
        notes = list(Text(row.note).wrap(console, max(20, console.width - indent)) if row.note else [])
        text = _line(line, widths, style=style_of(row.state))
        if beside and notes:
            text.append(_GAP).append(notes[0])
            notes = notes[1:]
        text.rstrip()
        console.print(text, soft_wrap=True)
        for note in notes:
            note.rstrip()
            console.print(Text(" " * indent).append(note), style="dim", soft_wrap=True)


def _cells(row: Standing) -> tuple[str, ...]:
    loss = "" if row.loss is None else f"{row.loss:.4g}"
    return (row.run, row.job or "", row.state, steps(row), loss, duration(row.remaining_s), row.nodes)


def _line(cells: Sequence[str], widths: dict[int, int], *, head: bool = False, style: str = "") -> Text:
    line = Text(style="bold" if head else "")
    for number, width in widths.items():
        cell = shorten(cells[number], width)
        padded = cell.rjust(width) if _HEAD[number] in _RIGHT else cell.ljust(width)
        line.append(padded, style=style if number == 2 else None).append(_GAP)
    line.right_crop(len(_GAP))
    if head:
        line.rstrip()
    return line


def shorten(text: str, width: int) -> str:
    """Cut in the middle."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
