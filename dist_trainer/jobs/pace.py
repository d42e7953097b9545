"""How far a run is and how fast, from the end of rank 0's journal and its heartbeat: no other line is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import read_heartbeat
from dist_trainer.tracking.journal import iterate_journal, planned_steps

_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Pace:
    """Where training stands; None for what is not known."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    remaining_s: float | None = None  # to the last step, at the recent speed, evaluations included
    phase: str = ""  # what rank 0 was last doing
    beat_time: float | None = None  # when it said so, by its host's clock


def pace_of(run: RunFolder) -> Pace:
    """Read it from the run's folder."""
    journal = run.journal_path(0)
    metrics = [record for record in _tail(journal) if record.get("kind") == "metrics"]
    total, beat = planned_steps(journal), read_heartbeat(run.heartbeat_path(0))
    losses = [record["values"]["train/loss"] for record in metrics if "train/loss" in record["values"]]
    step = beat.trained_step if beat else None
    if step is None and metrics:
        step = metrics[-1]["step"]
    second = _seconds_a_step(metrics)
    return Pace(
        step=step,
        total_steps=total,
        loss=float(losses[-1]) if losses else None,
        remaining_s=None
        if step is None or total is None or second is None
        else max(0, total - step) * second,
        phase=beat.phase if beat else "",
        beat_time=beat.time if beat else None,
    )


def _seconds_a_step(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """By the newest attempt of which two steps are known."""
    for attempt in sorted({record["attempt"] for record in metrics}, reverse=True):
        own = [record for record in metrics if record["attempt"] == attempt]
        steps = own[-1]["step"] - own[0]["step"]
        if steps > 0:
            return (float(own[-1]["time"]) - float(own[0]["time"])) / int(steps)
    return None


def _tail(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    start = max(0, path.stat().st_size - _TAIL_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        if start:
            start += len(file.readline())  # most likely not a whole one
    return [record for record, _ in iterate_journal(path, start)]
