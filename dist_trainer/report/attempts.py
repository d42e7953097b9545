"""A run's attempts on a line of time: when each trained and why it ended, what was saved, and what lay between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_trainer.adapters.records import is_moment
from dist_trainer.diagnose.evidence import whole
from dist_trainer.diagnose.words import one_line
from dist_trainer.jobs.table import duration

_GOOD = ("finished",)
_ASKED = ("SIGTERM or SIGINT", "SIGUSR2", "time limit", "preempted", "signal", "requeued", "stopped")


@dataclass(frozen=True)
class Attempt:
    """One row; times are unix seconds. `end` is None where it trains, or left no word of its end."""

    number: int
    start: float
    end: float | None
    seen: float  # the last that is known of it: its end, or its last line in the journal or beat
    first_step: int
    last_step: int | None
    world_size: int
    nodes: str
    job: str
    cause: str
    error: str
    exit_code: int | None
    waited_s: float | None  # since the attempt before was last seen
    is_open: bool = False  # it trains

    @property
    def kind(self) -> str:
        """good, asked (stopped because somebody wanted it), bad or open: what it is drawn as."""
        if self.cause in _GOOD:
            return "good"
        if self.is_open:
            return "open"
        was_asked = self.cause in _ASKED and self.exit_code in (0, 75, None)
        return "asked" if was_asked else "bad"

    @property
    def lasted_s(self) -> float:
        """From its start to the last that is known of it."""
        return max(0.0, self.seen - self.start)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {**vars(self), "lasted_s": self.lasted_s}


@dataclass(frozen=True)
class TimeLine:
    """All attempts, and when checkpoints were saved."""

    attempts: Sequence[Attempt] = ()
    saved: Sequence[float] = ()

    @property
    def trained_s(self) -> float:
        """Seconds in attempts."""
        return sum(each.lasted_s for each in self.attempts)

    @property
    def waited_s(self) -> float:
        """Seconds between attempts."""
        return sum(each.waited_s or 0.0 for each in self.attempts)

    @property
    def sentence(self) -> str:
        """It in words."""
        number = len(self.attempts)
        if not number:
            return "No attempt was begun yet."
        between = f", {duration(self.waited_s)} between them" if number > 1 else ""
        saves = f"; {len(self.saved):,} checkpoint{'s' if len(self.saved) != 1 else ''} saved"
        many = f"{number} attempts" if number > 1 else "One attempt"
        return f"{many}: {duration(self.trained_s)} of training{between}{saves}."


def time_line(
    lines: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    *,
    last_heard: Mapping[int, float],
    is_running: bool,
) -> TimeLine:
    """From attempts.jsonl, the journal's `saved` events, and when each attempt was last heard of."""
    starts = {line["attempt"]: line for line in lines if line["event"] == "start"}
    ends = {line["attempt"]: line for line in lines if line["event"] == "end"}
    requeued = {line["attempt"]: line for line in lines if line["event"] == "requeue"}
    found: list[Attempt] = []
    for number in sorted(starts):
        before = found[-1] if found else None
        end, heard = ends.get(number), last_heard.get(number)
        found.append(_attempt(starts[number], end, requeued.get(number), before, heard))
    if found and found[-1].number not in ends and is_running:
        found[-1] = replace(found[-1], is_open=True, cause="training")
    return TimeLine(found, [float(event["time"]) for event in saved])


def _attempt(
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    requeue: Mapping[str, Any] | None,
    before: Attempt | None,
    heard: float | None,
) -> Attempt:
    began = _moment(start) or heard or 0.0
    said, nodes = end or {}, start.get("nodes")
    # without both, slurm/lost_attempts.py wrote the line when the next attempt began: the end was earlier
    has_word = whole(said.get("exit_code")) is not None or whole(said.get("last_step")) is not None
    ended = _moment(said) if has_word else None
    cause = (requeue or {}).get("cause") or said.get("cause")
    return Attempt(
        number=start["attempt"],
        start=began,
        end=ended,
        seen=max(began, ended or heard or began),
        first_step=whole(start.get("first_step")) or 0,
        last_step=whole(said.get("last_step")),
        world_size=whole(start.get("world_size")) or 1,
        nodes=", ".join(map(str, nodes[:8])) if isinstance(nodes, list) else "",
        job=str(start.get("job") or ""),
        cause=one_line(cause or ("died without a word" if end is None else "not said"), 120),
        error=one_line(said.get("error") or "", 300),
        exit_code=whole(said.get("exit_code")),
        waited_s=max(0.0, began - before.seen) if before and began else None,
    )


def _moment(line: Mapping[str, Any]) -> float | None:
    return float(line["time"]) if is_moment(line.get("time")) and line["time"] else None
