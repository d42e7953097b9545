"""The job's real end as training's clock: when to stop for it, and which evaluation still ends before that.

Rank 0 decides for all, by what this run measured of itself. An evaluation's time has to be known before it is
begun again in the next attempt, or it would be begun, cut off and requeued for ever. So rank 0 of a job keeps

    <run>/times.json    {"world_size": 2, "step_s": 0.4, "save_s": 2.1, "evaluation_s": {"val": 31.0},
                         "cut_s": {"test": 12.5}}
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.records import read_record
from dist_trainer.errors import NoProgress
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.saves import Saves
from dist_trainer.training.stop import Agreed, Stop

FILE = "times.json"
RECENT = 20  # exchanges, of which the slowest step counts
SAVE_SHARE = 1.5  # a save may take this much longer than the longest so far
EVALUATION_SHARE = 1.2
MARGIN_S = 5.0  # to write how the attempt ended, and to leave
# of a step's time for as many rows: a forward pass is a third of its arithmetic, reading the rows costs the same
FORWARD_SHARE = 0.5


@dataclass
class Times:
    """What a run measured of itself, by its rank 0, in seconds."""

    world_size: int
    step_s: float = 0.0  # the slowest of the recent ones
    save_s: float = 0.0  # the longest
    evaluation_s: dict[str, float] = field(default_factory=dict)  # the longest of an attempt, by split
    cut_s: dict[str, float] = field(default_factory=dict)  # it takes longer than this: that was cut off


class TimeLimit:
    """Without a limit, or where the end is past already and SLURM lets the job go on, nothing is ever refused."""

    def __init__(self, attempt: Attempt, saves: Saves) -> None:
        self._attempt = attempt
        self._saves = saves
        self._place = attempt.group.place
        end = self._place.job_end
        self._end = end if end is not None and end > time.time() and attempt.is_rank_zero else None
        self._times = read_times(attempt.run, attempt.group.world_size)
        self._recent: deque[float] = deque([self._times.step_s], RECENT)
        self._measured: set[str] = set()  # splits, in this attempt
        self._is_fresh = True  # nothing was done in this job yet that could have used its time up
        self._is_over = self._is_warm = False

    def asked(self) -> Stop:
        """TIME_LIMIT on rank 0 once it is time to stop, and from then on."""
        if self._end is not None and not self._is_over:
            self._is_over = self._left_s() < 0
        return Stop.TIME_LIMIT if self._is_over else Stop.NONE

    def _left_s(self) -> float:
        """How long may be trained or evaluated: until there is just the time to end a step and to save."""
        assert self._end is not None
        longest = max(self._times.save_s, self._saves.longest_s)
        saves = 2 if self._saves.is_busy else 1  # the one under way is waited for
        needed = saves * SAVE_SHARE * longest + 2 * max(self._recent) + MARGIN_S
        return self._end - time.time() - max(needed, self._place.signal_before_s)

    def trained(self, agreed: Agreed) -> None:
        """Note how long steps take. An attempt's first one also compiles and warms up: it says nothing of others."""
        if agreed.slowest_step_s:
            if self._is_warm:
                self._recent.append(agreed.slowest_step_s)
            self._is_warm, self._is_fresh = True, False

    def may_evaluate(self, split: str, *, in_steps: float) -> bool:
        """Whether an evaluation begun now, of the rows of so many steps, ends before training must. Collective.

        The first thing that a job does is begun in any case: no other one would have more time. Raises
        NoProgress where as much time was too little before.
        """
        allowed: bool = self._attempt.group.from_rank_zero(lambda: self._allows(split, in_steps))
        return allowed

    def _allows(self, split: str, in_steps: float) -> bool:
        if self._end is None:
            return True
        left_s, cut_s = self._left_s(), self._times.cut_s.get(split, 0.0)
        if self._is_fresh and self._is_first_of_job():
            if cut_s * 1.1 > left_s:
                raise NoProgress(
                    f"the evaluation of {split} did not end within {cut_s:.0f} s, and this job's time limit "
                    f"leaves it {max(0.0, left_s):.0f} s: give the job more (slurm.time), or the evaluation more "
                    "ranks or fewer rows"
                )
            return True
        estimate = in_steps * FORWARD_SHARE * max(self._recent)
        expected_s = self._times.evaluation_s.get(split) or max(estimate, cut_s)
        return left_s > EVALUATION_SHARE * expected_s

    def _is_first_of_job(self) -> bool:
        """Whether no earlier attempt used this job's time; workers may be restarted within a job."""
        job = (self._place.job, self._place.restart)
        starts = [line for line in self._attempt.run.attempts() if line["event"] == "start"]
        return job[0] is None or sum((line.get("job"), line.get("restart")) == job for line in starts) == 1

    def evaluated(self, split: str, seconds: float, *, whole: bool) -> None:
        """Note how long an evaluation took, or how long it was let go on."""
        self._is_fresh = False
        if whole:
            known_s = self._times.evaluation_s.get(split, 0.0) if split in self._measured else 0.0
            self._times.evaluation_s[split] = max(seconds, known_s)
            self._times.cut_s.pop(split, None)
            self._measured.add(split)
        else:
            self._times.cut_s[split] = max(seconds, self._times.cut_s.get(split, 0.0))
        self.keep()

    def keep(self) -> None:
        """Write down what was measured, for the next attempt."""
        if self._end is not None:
            self._times.step_s = max(self._recent)
            self._times.save_s = max(self._times.save_s, self._saves.longest_s)
            with suppress(OSError):  # a full disk; the next attempt then measures anew
                write_json(self._attempt.run.path / FILE, asdict(self._times))


def read_times(run: RunFolder, world_size: int) -> Times:
    """What earlier attempts measured, as it is to be expected at this world size."""
    try:
        times = read_record(Times, (run.path / FILE).read_bytes())
    except (OSError, ValueError):
        return Times(world_size)
    factor = times.world_size / world_size
    return Times(
        world_size,
        factor * times.step_s,
        times.save_s,
        {split: factor * seconds for split, seconds in times.evaluation_s.items()},
        {split: factor * seconds for split, seconds in times.cut_s.items()},
    )
