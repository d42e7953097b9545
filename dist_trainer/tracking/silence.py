"""Which ranks get no further, told from their heartbeats by the watcher's own clock, and who waits for whom.

How long a rank may be silent is learnt. What a run has not done yet (a first step that compiles, a first
evaluation, a first save) may take COLD times `launch.timeout_s`. What it has done may take that long, and less
where its own intervals are short: OFTEN times the longest so far, but never less than FLOOR_S. Where the
longest is near the limit already, the limit grows with it. Ranks that wait for others end the patience a
little before the process group's own time-out, which would name nobody.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dist_trainer.spans import ranges
from dist_trainer.tracking.heartbeat import BEFORE_TRAINING, OF_A_STEP, Beat

FLOOR_S = 30.0
LATE_S = 60.0  # a word from another node, or of a rank that is not watched, may be seen so much later (NFS)
OFTEN, AT_LEAST = 20, 3  # times the longest interval so far
COLD = 10  # times launch.timeout_s
GROUP_WAITS = 2  # times launch.timeout_s: the process group's time-out
EARLIER, EARLIER_S = (
    0.2,
    3.0,
)  # times launch.timeout_s, and at least so many seconds: to write stacks before it
NEVER_KNOWN = (
    *BEFORE_TRAINING,
    "hooks",
    "compile",
    "end",
)  # much of the user's code: each time may be the first long one
_BY_BATCH = ("evaluate", "test")  # a beat after each batch; before the first the ranks wait for each other
STARVED_S = 5.0  # a watcher that did not look for so long was stopped itself, and so were the ranks


@dataclass(frozen=True)
class Hang:
    """Ranks that made no progress, by the last thing they said. `stuck` are waited for by the others."""

    stuck: Sequence[Beat]
    others: Sequence[Beat]
    silent_s: float  # of the whole group: since the last rank got further
    overdue_s: float  # of that, beyond what was allowed
    since: Mapping[int, float]  # seconds that each rank has been doing the same
    why: str = ""

    def because_of(self, stopped: Collection[int]) -> "Hang":
        """The same, where a signal has stopped the processes of these ranks: whoever waits, waits for them."""
        beats = sorted([*self.stuck, *self.others], key=lambda beat: beat.rank)
        halted = [beat for beat in beats if beat.rank in stopped]
        if not halted:
            return self
        others = [beat for beat in beats if beat.rank not in stopped]
        return replace(self, stuck=halted, others=others, why=" (stopped by a signal)")

    def describe(self) -> str:
        """One sentence."""
        longest_s = max(self.since[beat.rank] for beat in self.stuck)
        parts = [f"{_group(self.stuck)} for {longest_s:.0f} s{self.why}"]
        if self.others:
            parts.append(f"{_group(self.others)}, waiting")
        return "no progress: " + "; ".join(parts)


@dataclass
class _Seen:
    beat: Beat
    first_step: int | None  # of this attempt's training; None before it begins
    since: float


class Silence:
    """Looks at the heartbeats of one run again and again. What it learnt of a run's pace outlives an attempt."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._longest: dict[str, float] = {}  # seconds in a phase, by phase
        self._seen: dict[int, _Seen] = {}
        self._looked_at: float | None = None

    def begin(self) -> None:
        """Another attempt begins: its ranks are new, and cold."""
        self._seen.clear()

    def look(
        self, beats: Iterable[Beat], now: float, *, watched: Collection[int] | None = None
    ) -> Hang | None:
        """What hangs, if something does; `now` is a monotonic time, `beats` are the living ranks' last words.

        The silence of `watched` ranks counts, by default of all, and that of those that they wait for, whose word
        may come late.
        """
        self._note(beats, now)
        seen = {rank: one for rank, one in self._seen.items() if watched is None or rank in watched}
        if not seen:
            return None
        stuck = self._behind()
        silent_s = now - max(one.since for one in (*seen.values(), *stuck))
        allowed_s = max(self._allowed_s(one) for one in stuck)
        if any(one.beat.rank not in seen for one in stuck):
            allowed_s += LATE_S
        if any(one.beat.is_waiting for one in self._seen.values()):
            earlier_s = max(EARLIER * self._timeout_s, min(EARLIER_S, self._timeout_s / 2))
            allowed_s = min(allowed_s, GROUP_WAITS * self._timeout_s - earlier_s)
        if silent_s <= allowed_s:
            return None
        ranks = {one.beat.rank for one in stuck}
        return Hang(
            [one.beat for one in stuck],
            [one.beat for rank, one in sorted(self._seen.items()) if rank not in ranks],
            silent_s,
            silent_s - allowed_s,
            {rank: now - one.since for rank, one in self._seen.items()},
        )

    def _note(self, beats: Iterable[Beat], now: float) -> None:
        gap_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        there = {beat.rank: beat for beat in beats}
        self._seen = {rank: one for rank, one in self._seen.items() if rank in there}
        for rank, beat in there.items():
            known = self._seen.get(rank)
            if known is None or known.beat.pid != beat.pid:
                self._seen[rank] = _Seen(beat, _first_step(beat), now)
                continue
            if gap_s > STARVED_S:
                known.since += gap_s
            if beat != known.beat:
                if not (beat.is_waiting and known.beat.phase in _BY_BATCH):
                    self._learn(known, now - known.since)
                first_step = _first_step(beat) if known.first_step is None else known.first_step
                self._seen[rank] = _Seen(beat, first_step, now)

    def _learn(self, seen: _Seen, seconds: float) -> None:
        phase = seen.beat.phase
        if phase in NEVER_KNOWN or (phase in OF_A_STEP and not self._is_warm(seen)):
            return  # an attempt's first step also compiles: it says nothing of others
        self._longest[phase] = max(seconds, self._longest.get(phase, 0.0))

    def _is_warm(self, seen: _Seen) -> bool:
        """Whether the rank has done this before: a step of this attempt, or this phase at all."""
        if seen.beat.phase in OF_A_STEP:
            return seen.first_step is not None and seen.beat.step > seen.first_step + 1
        return seen.beat.phase in self._longest

    def _allowed_s(self, seen: _Seen) -> float:
        if not self._is_warm(seen) or seen.beat.phase in NEVER_KNOWN:
            return COLD * self._timeout_s
        longest = self._longest.get(seen.beat.phase, 0.0)
        return max(AT_LEAST * longest, min(self._timeout_s, max(FLOOR_S, OFTEN * longest)))

    def _behind(self) -> list[_Seen]:
        """The ranks that the others wait for: of those that wait for nobody the last; of all where each waits."""
        busy = [one for one in self._seen.values() if not one.beat.is_waiting] or list(self._seen.values())
        last = min(one.beat.place for one in busy)
        return [one for one in busy if one.beat.place == last]


def _first_step(beat: Beat) -> int | None:
    return None if beat.phase in BEFORE_TRAINING else beat.step


def _group(beats: Sequence[Beat]) -> str:
    """Ranks by what they do: `ranks 0 and 1 in the all-reduce of step 418`."""
    by_word: dict[str, list[int]] = {}
    for beat in beats:
        by_word.setdefault(beat.doing, []).append(beat.rank)
    return ", ".join(f"{_names(ranks)} {word}" for word, ranks in by_word.items())


def _names(ranks: Sequence[int]) -> str:
    """`rank 2`, `ranks 0 and 1`, `ranks 0-6 and 9`."""
    listed = ranges(ranks)
    head, comma, tail = listed.rpartition(", ")
    return f"rank {listed}" if len(ranks) == 1 else f"ranks {head} and {tail}" if comma else f"ranks {listed}"
