"""The attempts before the one that is explained, in a line each, and what they have in common with it."""

from collections import Counter
from typing import Any

from dist_trainer.diagnose.evidence import Evidence, Line, whole
from dist_trainer.diagnose.ranks import FirstFailed
from dist_trainer.diagnose.words import count, one_line
from dist_trainer.jobs.standing import clock

_OF_A_NODE = ("killed", "node failure")


def before(evidence: Evidence) -> list[str]:
    """One line for each, the newest last."""
    numbers = sorted({line["attempt"] for line in evidence.lines if 0 < line["attempt"] < evidence.attempt})
    return [_told(evidence, number) for number in numbers]


def _told(evidence: Evidence, number: int) -> str:
    start, end = evidence.line_of(number, "start"), evidence.line_of(number, "end")
    first, last = _number(start, "first_step"), _number(end, "last_step")
    steps = f"step {'?' if first is None else first} to {'?' if last is None else last}"
    when = start or end or {}
    at = f"{clock(when['time'])}, " if isinstance(when.get("time"), int | float) else ""
    return f"{number}: {at}{steps}{_where(start)}: {_cause(end)}"


def _cause(end: Line | None) -> str:
    if end is None:
        return "no word of an end"
    error = str(end.get("error") or "").splitlines()
    return one_line(error[0] if error else end.get("cause") or "no word of a cause", 160)


def _where(start: Line | None) -> str:
    nodes = start.get("nodes") if start else None
    return f" on {', '.join(map(str, nodes[:3]))}" if isinstance(nodes, list) and nodes else ""


def _number(line: Line | None, key: str) -> int | None:
    return whole(line.get(key)) if line else None


def comes_back(evidence: Evidence, first: FirstFailed | None) -> str:
    """Whether the same error, or the same node, was there before; "" where neither was."""
    if first is None:
        return ""
    ends = [line for line in evidence.lines if line["event"] == "end" and line["attempt"] < evidence.attempt]
    same = [line["attempt"] for line in ends if not first.killed and line.get("error") == first.what]
    if same:
        return f"the same error ended attempt {same[-1]}: it comes again as long as nothing is changed"
    nodes: Counter[Any] = Counter(line.get("node") for line in ends if line.get("cause") in _OF_A_NODE)
    everywhere = {str(node) for line in evidence.lines for node in line.get("nodes") or ()}
    if first.killed and first.node and nodes[first.node] and len(everywhere) > 1:
        times = count(nodes[first.node], "earlier attempt")
        return f"{times} ended on {first.node} too: the node may be bad, or too small"
    return ""
