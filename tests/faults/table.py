"""What the ledger's rows add up to, as tables in Markdown: for the terminal and for docs/reliability.md."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

FAULTS = ("fault", "times tried", "lost")
TRIALS = ("random fault", "times", "steps redone, mean", "most", "seconds more, mean", "useful share")

Line = dict[str, Any]


def read_lines(ledger: Path) -> list[Line]:
    """Every line of a ledger; none where nothing was tried."""
    if not ledger.exists():
        return []
    return [json.loads(line) for line in ledger.read_text().splitlines()]


def lost(lines: Iterable[Line]) -> int:
    """How often something was lost."""
    return sum(line["lost"] for line in lines if "fault" in line)


def fault_table(lines: Iterable[Line]) -> list[str]:
    """A row for each fault, in the order in which they were first tried, and their sum."""
    sums: dict[str, list[int]] = {}
    for line in lines:
        if "fault" in line:
            tried, gone = sums.setdefault(line["fault"], [0, 0])
            sums[line["fault"]] = [tried + line["tried"], gone + line["lost"]]
    if not sums:
        return []
    total = [sum(column) for column in zip(*sums.values(), strict=True)]
    rows = [[name, *map(str, counts)] for name, counts in sorted(sums.items())]
    return _markdown(FAULTS, [*rows, ["all", *map(str, total)]])


def trial_table(lines: Iterable[Line]) -> list[str]:
    """A row for each kind of random fault: what it cost in steps and in time.

    The useful share is the time of those steps that count in the end, of the wall time of all commands. Seconds
    more: than the untouched training took that has as many loader processes, and MLflow where the trial has it;
    the same process measured it.
    """
    kinds: dict[str, list[Line]] = {}
    for line in lines:
        if "trial" in line and not line["trial"]["missed"]:
            kinds.setdefault(line["trial"]["fault"], []).append(line["trial"])
    if not kinds:
        return []
    together = [trial for trials in kinds.values() for trial in trials]
    return _markdown(TRIALS, [*(_costs(*kind) for kind in sorted(kinds.items())), _costs("all", together)])


def _costs(name: str, trials: Sequence[Line]) -> list[str]:
    redone = [trial["steps_redone"] for trial in trials]
    more_s = mean(trial["wall_s"] - trial["untouched_s"] for trial in trials)
    share = sum(trial["useful_s"] for trial in trials) / sum(trial["wall_s"] for trial in trials)
    return [name, str(len(trials)), f"{mean(redone):.1f}", str(max(redone)), f"{more_s:.1f}", f"{share:.0%}"]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns stand below each other, the numbers to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        words = [cells[0].ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(words)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, rows)]
