"""What a check says: one line each, with what was found, what was measured, and what to do about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["fine", "skipped", "warning", "broken"]
STATES: tuple[State, ...] = ("fine", "skipped", "warning", "broken")  # from good to bad

# how a measurement is shown, and with how many digits
_SHOWN: Mapping[str, str] = {
    "latency_us": "{} us",
    "bandwidth_gb_s": "{} GB/s",
    "free_gb": "{} GB free",
    "fsync_ms": "fsync {} ms",
    "skew_s": "{} s apart",
    "took_s": "{} s",
    "seen_after_s": "seen after {} s",
}


@dataclass(frozen=True)
class Finding:
    """One line: `found` is what is the same on like machines, `measured` what differs a little on each."""

    name: str
    state: State
    found: str = ""
    advice: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()  # those it was found on; none where only this machine was looked at

    @property
    def text(self) -> str:
        """What was found, with its measurements."""
        return with_measured(self.found, [self.measured])

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        plain = {"name": self.name, "state": self.state, "found": self.found, "advice": self.advice}
        return {**plain, "measured": dict(self.measured), "nodes": list(self.nodes)}


def with_measured(found: str, measured: Sequence[Mapping[str, float]]) -> str:
    """The words, and each measurement, as a range where several nodes measured it."""
    texts = [found] if found else []
    for name in dict.fromkeys(name for each in measured for name in each):
        values = sorted(_number(each[name]) for each in measured if name in each)
        low, high = values[0], values[-1]
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        texts.append(_SHOWN[name].format(span))
    return ", ".join(texts)


def _number(value: float) -> float:
    """Two digits, or all those before the point."""
    return float(round(value)) if abs(value) >= 10 else float(f"{value:.2g}")


def count(number: int, one: str, *, many: str = "") -> str:
    """1 node, 2 nodes, 3 loader processes."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def worst(findings: Iterable[Finding]) -> State:
    """The worst state of all; "fine" of none."""
    return max((finding.state for finding in findings), key=STATES.index, default="fine")


def exit_code(findings: Iterable[Finding]) -> int:
    """1 where something is broken, else 0."""
    return int(worst(findings) == "broken")
