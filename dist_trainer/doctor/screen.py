"""Findings as lines for a terminal: a name, a state, what was found, and below it what to do."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dist_trainer.doctor.findings import STATES, Finding, State

_STATE = 9
_NARROWEST = 40
_STYLES: dict[State, str] = {"fine": "green", "skipped": "dim", "warning": "yellow", "broken": "bold red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print them, and how many there are of each state."""
    width = max((len(finding.name) for finding in findings), default=0) + 2
    for finding in findings:
        for line in _lines(finding, width, console.width):
            console.print(line, soft_wrap=True)
    console.print(summary(findings), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> Text:
    """12 fine, 1 skipped, 1 warning, 0 broken."""
    counts = {state: sum(finding.state == state for finding in findings) for state in STATES}
    plural = "s" if counts["warning"] != 1 else ""
    text = Text(f"{counts['fine']} fine, ")
    if counts["skipped"]:
        text.append(f"{counts['skipped']} skipped, ")
    text.append(f"{counts['warning']} warning{plural}", _STYLES["warning"] if counts["warning"] else "")
    return text.append(", ").append(
        f"{counts['broken']} broken", _STYLES["broken"] if counts["broken"] else ""
    )


def _lines(finding: Finding, width: int, columns: int) -> Iterator[Text]:
    lead = f"{finding.name:<{width}}{finding.state:<{_STATE}}"
    indent = " " * len(lead)
    on = f"{', '.join(finding.nodes)}: " if finding.nodes else ""
    for number, line in enumerate(_wrapped(on + finding.text, lead, indent, columns)):
        text = Text(line)
        if number == 0:
            text.stylize(_STYLES[finding.state], width, width + len(finding.state))
        yield text
    if finding.advice:
        yield from (Text(line) for line in _wrapped(f"-> {finding.advice}", indent, indent + "   ", columns))


def _wrapped(text: str, first: str, indent: str, columns: int) -> list[str]:
    """Lines that fit; a word longer than a line, such as a path, stays whole."""
    return textwrap.wrap(
        text,
        max(_NARROWEST, columns),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
