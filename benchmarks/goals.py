"""What is promised about time and size, and how much of it holds: this project beside its peers and the floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PEERS = ["hand-written", "Accelerate", "Lightning"]


@dataclass(frozen=True)
class Figure:
    """One promise. `ratio`: what is held against the goal, the median of the ratios within each round; where it
    is None, `here` itself is."""

    what: str
    unit: str
    here: float
    peers: Mapping[str, float]  # by name; may be empty
    floor: float | None  # what physics allows on this machine, where it is measured
    ratio: float | None
    goal: float
    at_least: bool = False  # the goal is a lower bound

    @property
    def held(self) -> float:
        """What is compared with the goal."""
        return self.here if self.ratio is None else self.ratio

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.held >= self.goal if self.at_least else self.held <= self.goal


def as_goals(figures: Sequence[Figure]) -> list[str]:
    """Markdown: a line for each figure; peers without a column of their own are named beside `what`."""
    lines = [
        f"| what | here | {' | '.join(PEERS)} | floor | ratio | goal | reached |",
        f"| --- |{' ---: |' * (len(PEERS) + 4)} --- |",
    ]
    return lines + [_line(figure) for figure in figures]


def _line(figure: Figure) -> str:
    others = [
        f"{name} {_shown(value, figure.unit)}" for name, value in figure.peers.items() if name not in PEERS
    ]
    cells = [
        figure.what + (f" ({', '.join(others)})" if others else ""),
        _shown(figure.here, figure.unit),
        *(_shown(figure.peers.get(name), figure.unit) for name in PEERS),
        _shown(figure.floor, figure.unit),
        "" if figure.ratio is None else f"{figure.ratio:.3f}",
        _goal(figure),
        "yes" if figure.reached else "no",
    ]
    return f"| {' | '.join(cells)} |"


def _goal(figure: Figure) -> str:
    bound = ">=" if figure.at_least else "<="
    return f"{bound} {figure.goal:g}" + (f" {figure.unit}" if figure.ratio is None else "")


def _shown(value: float | None, unit: str) -> str:
    """With three figures, and in full where there are more before the point."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"
