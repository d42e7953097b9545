"""A run's attempts on a line of time: when each trained and why it ended, what was saved, and what lay between."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.adapters.files import open_plain
from dist_trainer.adapters.records import is_moment
from dist_trainer.diagnose.evidence import UNREADABLE, whole
from dist_trainer.diagnose.words import count, one_line
from dist_trainer.jobs.table import duration

_FENCE = re.compile(r"[0-9]{4,9}[.]json")
_MOST_BYTES = 64 << 10  # of a fence
_GOOD = ("finished",)
_ASKED = (
    "SIGTERM or SIGINT",
    "SIGUSR2",
    "time limit",
    "preempted",
    "signal",
    "requeued",
    "cancelled",
    "stopped",
)


@dataclass(frozen=True)
class Attempt:
    """One row; times are unix seconds. `end` is None where it trains, or left no word of its end.

    `start` is when its training began, or where it never came to train, when it was begun; 0 where nothing tells.
    """

    number: int
    start: float
    end: float | None
    seen: float  # the last that is known of it: its end, or its last line in the journal or beat
    first_step: int | None  # None where it never came to train, as the world size is
    last_step: int | None
    world_size: int | None
    nodes: str
    job: str
    cause: str
    error: str
    exit_code: int | None
    waited_s: float | None  # since the attempt before was last seen
    trained: bool = True  # it came as far as training
    is_open: bool = False  # it trains, or starts

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
    """All attempts, and when checkpoints were saved: the newest moments, and how many there were."""

    attempts: Sequence[Attempt] = ()
    saved: Sequence[float] = ()
    saves: int = 0

    @property
    def trained_s(self) -> float:
        """Seconds in attempts that came to train."""
        return sum(each.lasted_s for each in self.attempts if each.trained)

    @property
    def waited_s(self) -> float:
        """Seconds between attempts."""
        return sum(each.waited_s or 0.0 for each in self.attempts)

    @property
    def sentence(self) -> str:
        """It in words."""
        number, idle = len(self.attempts), sum(not each.trained for each in self.attempts)
        if not number:
            return "No attempt was begun yet."
        between = f", {duration(self.waited_s)} between them" if number > 1 else ""
        saves = f"; {count(self.saves, 'checkpoint')} saved"
        many = f"{number} attempts" if number > 1 else "One attempt"
        never = f"; {_have(idle, number)} not come to train" if idle else ""
        return f"{many}: {duration(self.trained_s)} of training{between}{saves}{never}."


def _have(some: int, of: int) -> str:
    return "it has" if of == 1 else f"{some} {'has' if some == 1 else 'have'}"


def begun_at(fences: Path, lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """When each attempt without a start line in attempts.jsonl was begun, by its fence; 0 where that says nothing."""
    started = {line["attempt"] for line in lines if line["event"] == "start"}
    found = {int(path.stem): path for path in fences.glob("*.json") if _FENCE.fullmatch(path.name)}
    return {number: _fence_time(path) for number, path in found.items() if number not in started}


def _fence_time(path: Path) -> float:
    with suppress(*UNREADABLE), open_plain(path) as file:
        return _moment(json.loads(file.read(_MOST_BYTES))) or 0.0
    return 0.0


def time_line(
    lines: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    *,
    last_heard: Mapping[int, float],
    begun: Mapping[int, float],
    saves: int,
    is_running: bool,
) -> TimeLine:
    """From attempts.jsonl, the journal's newest `saved` events, and when each attempt was last heard of.

    `begun` may leave out those with a start line, which is written when the training begins; `saves` counts all.
    """
    starts = {line["attempt"]: line for line in lines if line["event"] == "start"}
    ends = {line["attempt"]: line for line in lines if line["event"] == "end"}
    requeued = {line["attempt"]: line for line in lines if line["event"] == "requeue"}
    found: list[Attempt] = []
    for number in sorted(number for number in starts.keys() | ends.keys() | begun.keys() if number > 0):
        before = found[-1] if found else None
        end, heard = ends.get(number), last_heard.get(number)
        start = starts.get(number) or {"attempt": number, "time": begun.get(number)}
        one = _attempt(start, end, requeued.get(number), before, heard)
        found.append(replace(one, trained=number in starts))
    if found and found[-1].number not in ends and is_running:
        cause = "training" if found[-1].trained else "starting"
        found[-1] = replace(found[-1], is_open=True, cause=cause)
    return TimeLine(found, [float(event["time"]) for event in saved], saves)


def _attempt(
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    requeue: Mapping[str, Any] | None,
    before: Attempt | None,
    heard: float | None,
) -> Attempt:
    said, nodes = end or {}, start.get("nodes")
    # without both, slurm/lost_attempts.py wrote the line when the next attempt began: the end was earlier
    has_word = whole(said.get("exit_code")) is not None or whole(said.get("last_step")) is not None
    ended = _moment(said) if has_word else None
    began = _moment(start) or ended or heard or 0.0
    cause = (requeue or {}).get("cause") or said.get("cause")
    return Attempt(
        number=start["attempt"],
        start=began,
        end=ended,
        seen=max(began, ended or heard or began),
        first_step=whole(start.get("first_step")),
        last_step=whole(said.get("last_step")),
        world_size=whole(start.get("world_size")),
        nodes=", ".join(map(str, nodes[:8])) if isinstance(nodes, list) else "",
        job=str(start.get("job") or ""),
        cause=one_line(cause or ("died without a word" if end is None else "not said"), 120),
        error=one_line(said.get("error") or "", 300),
        exit_code=whole(said.get("exit_code")),
        waited_s=max(0.0, began - before.seen) if before and began else None,
    )


def _moment(line: Mapping[str, Any]) -> float | None:
    return float(line["time"]) if is_moment(line.get("time")) and line["time"] else None
