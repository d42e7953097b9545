"""What a probe measured of a training's steps on one rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_trainer.planning.timeline import Compute, Gradient

WARM_UP_STEPS = 5  # are left out


@dataclass(frozen=True)
class Spent:
    """Seconds that went by, and seconds of one core that this rank used meanwhile."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)

    def shared(self, ranks: int, cores: int | None) -> float:
        """Seconds where as many ranks take turns on a node's cores, and sleep or wait for the rest side by side.

        Mean value analysis of a closed queue (Reiser and Lavenberg, Mean-value analysis of closed multichain queuing
        networks, J. ACM 27(2), 1980), with Seidmann's split of what several servers do: each rank finds those queued
        who would be there without it. `cores` is None where nothing is shared.
        """
        if cores is None or ranks <= cores or not self.cpu_s:
            return self.wall_s
        asleep_s, turn_s = max(0.0, self.wall_s - self.cpu_s), self.cpu_s / cores
        queued, total_s = 0.0, self.wall_s
        for present in range(1, ranks + 1):
            in_queue_s = turn_s * (1 + queued)
            total_s = asleep_s + in_queue_s + self.cpu_s - turn_s
            queued = present * in_queue_s / total_s
        return total_s


@dataclass(frozen=True)
class Phases:
    """The parts of a step with so many rows, each the median of the measured steps: see Compute."""

    rows: int
    between: Spent
    forward: Spent
    backward: Spent
    update: Spent


PARTS = ("between", "forward", "backward", "update")


@dataclass(frozen=True)
class SaveTime:
    """One checkpoint: its bytes, how long training stands still for it, and how long until it is committed."""

    size_bytes: int
    stall_s: float
    total_s: float


@dataclass(frozen=True)
class Measurement:
    """One rank's steps, of one or two sizes, its gradients in the order of backward, and a save."""

    device: str
    dataset_rows: int
    micro_batches: int
    buffer_bytes: int
    gradients: Sequence[Gradient]
    phases: Sequence[Phases]
    save: SaveTime

    @property
    def rank_rows(self) -> int:
        """Rows of one rank in a step as configured."""
        return self.phases[0].rows

    def compute(self, rows: int, *, ranks: int = 1, cores: int | None = None) -> Compute:
        """A step of one rank with so many rows: on the line through what was measured, and at one size as it was.

        `ranks` of a node share its `cores`.
        """
        first, last = self.phases[0], self.phases[-1]

        def seconds(part: str) -> float:
            measured = [(each.rows, getattr(each, part).shared(ranks, cores)) for each in (first, last)]
            return _on_line(rows, *measured)

        between_s, forward_s, backward_s, update_s = map(seconds, PARTS)
        return Compute(between_s, forward_s, backward_s, update_s, self.micro_batches)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Measurement":
        """One as JSON, as `dataclasses.asdict` makes it."""
        gradients = [Gradient(**each) for each in found["gradients"]]
        phases = [Phases(each["rows"], *(Spent(**each[part]) for part in PARTS)) for each in found["phases"]]
        parts = {"gradients": gradients, "phases": phases, "save": SaveTime(**found["save"])}
        return cls(**{**found, **parts})


def _on_line(rows: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """More rows take no less, and none take no less than nothing, whatever noise there was."""
    if first[0] == second[0]:
        return first[1]
    per_row = max(0.0, (first[1] - second[1]) / (first[0] - second[0]))
    per_row = min(per_row, first[1] / first[0])
    return first[1] + per_row * (rows - first[0])
