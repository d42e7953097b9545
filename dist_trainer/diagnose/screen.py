"""An explanation as lines for a terminal: labels to the left, what comes first at the top, the command at the end."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dist_trainer.diagnose.explain import Explanation
from dist_trainer.diagnose.ranks import FirstFailed
from dist_trainer.diagnose.saved import Saved
from dist_trainer.diagnose.words import count, one_line, typed

_LABEL = 10
_NARROWEST = 40
_ROWS = 23  # of the smallest terminal's 24, the prompt has one
# how many earlier attempts, lines about the other ranks and lines of an error: the first that the rows allow
_SHOWN = ((4, 6, 8), (3, 6, 8), (2, 5, 8), (1, 4, 8), (1, 2, 6), (0, 1, 3), (0, 1, 1))
_STYLES = {"finished": "green", "running": "green", "failed": "red", "given up": "red", "lost": "red"}
Fact = tuple[str, str | Sequence[str]]


def show(found: Explanation, console: Console) -> None:
    """Print it."""
    for text in _screen(found, console.width):
        console.print(text, soft_wrap=True)


def _screen(found: Explanation, width: int) -> list[Text]:
    """The first of the choices of _SHOWN that leaves room for all the rest; else the last."""
    lines: list[Text] = []
    for shown in _SHOWN:
        lines = [*_head(found, width), *_body(_facts(found, *shown), width)]
        lines.append(Text(f"{'next':<{_LABEL}}").append(found.next, style="bold"))
        if sum(max(1, -(-len(line) // width)) for line in lines) <= _ROWS:
            break
    return lines


def _head(found: Explanation, width: int) -> Iterator[Text]:
    for number, line in enumerate(_wrapped(f"{found.run}  {found.sentence}", "", "  ", width)):
        text = Text(line, style=f"bold {_STYLES.get(found.state, '')}".strip())
        if number == 0:
            text.stylize("bold", 0, len(found.run))
        yield text


def _body(facts: Iterable[Fact], width: int) -> Iterator[Text]:
    for label, value in facts:
        first = f"{label:<{_LABEL}}"
        for line in [value] if isinstance(value, str) else value:
            yield from map(Text, _wrapped(line, first, " " * _LABEL, width))
            first = " " * _LABEL


def _facts(found: Explanation, shown_earlier: int, shown_others: int, shown_error: int) -> Iterator[Fact]:
    """What is known, each under its label."""
    if found.first_failed is not None:
        yield from _first(found, found.first_failed, shown_error)
    elif found.attempts > 1 and found.state not in ("finished", "waiting"):
        yield "attempt", f"{found.attempt} of {found.attempts}"
    others = list(found.others[:shown_others])
    if len(found.others) > len(others):
        others.append(f"and {len(found.others) - len(others)} more lines in --json")
    if others:
        yield "others" if found.first_failed else "ranks", others
    if found.state not in ("finished", "new"):
        yield "done", _done(found)
    yield "saved", _saved(found.saved)
    if found.earlier:
        hidden = max(0, len(found.earlier) - shown_earlier)
        more = [f"{hidden:,} more in attempts.jsonl"] if hidden else []
        yield "earlier", [*more, *found.earlier[hidden:]]
    if found.comes_back:
        yield "again", found.comes_back
    if found.slurm is not None:
        yield "SLURM", found.slurm.says
    if found.unreadable:
        yield "unread", [one_line(problem, 200) for problem in found.unreadable]
    if found.change_first:
        yield "do first", found.change_first


def _first(found: Explanation, first: FirstFailed, shown: int) -> Iterator[Fact]:
    who = "no single rank" if first.rank is None else f"rank {first.rank}"
    where = f" on {first.node}" if first.node else ""
    when = f" at step {first.step}" if first.step is not None else ""
    phase = f", in {one_line(first.phase, 40)}" if first.phase else ""
    yield "failed", f"{who}{where}{when}{phase}; attempt {found.attempt} of {found.attempts}"
    lines = first.what.splitlines()
    if len(lines) > 1:
        yield "message", [one_line(line) for line in lines[:shown]]
    if first.traceback:
        yield "error", first.traceback[-shown:]
    if first.log:
        yield "log", typed(Path(first.log))


def _done(found: Explanation) -> str:
    if found.step is None:
        return "no step that anybody told of"
    of = f" of {found.total_steps}" if found.total_steps else ""
    again = found.steps_to_repeat
    repeat = f"; {count(again, 'step')} to do again" if again else ""
    return f"step {found.step}{of}{repeat}"


def _saved(saved: Saved) -> str:
    if saved.problem:
        by_journal = (
            f"by the journal step {saved.step}" if saved.step is not None else "the journal tells of none"
        )
        return f"{by_journal}; {saved.problem}"
    damaged = f"; {count(saved.damaged, 'damaged one')} in quarantine" if saved.damaged else ""
    if saved.step is None:
        return f"nothing yet{damaged}"
    where = saved.where if "://" in saved.where else typed(saved.where)
    before = f" and {count(saved.committed - 1, 'older one')}" if saved.committed > 1 else ""
    return f"step {saved.step} ({where}/{saved.name}){before}{damaged}"


def _wrapped(text: str, first: str, indent: str, width: int) -> list[str]:
    """Lines that fit; a word longer than a line, such as a path, stays whole."""
    lead = len(text) - len(text.lstrip())
    return textwrap.wrap(
        text.strip(),
        max(_NARROWEST, width),
        initial_indent=first + " " * lead,
        subsequent_indent=indent + " " * lead,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
