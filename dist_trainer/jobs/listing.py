"""All runs of a folder and all jobs of ours, each with how it stands: what `dist-trainer jobs` shows.

SLURM is asked once for the queue. What is not in it is looked for by itself only where the run's folder cannot
be the truth: it says running, or was to be run again.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dist_trainer.errors import UsageError
from dist_trainer.jobs.standing import Standing, clock, standing
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.array_elements import array_of, find_elements
from dist_trainer.slurm.reasons import is_held, why_it_waits
from dist_trainer.slurm.scheduler import NO_SLURM, JobRecord, SchedulerUnavailable, find, my_jobs
from dist_trainer.slurm.submissions import Submission, is_of, last_job, user_name

_ORDER = ("running", "ending", "starting", "preempted", "requeued", "pending", "held", "lost")
_RECENT_S = 86_400.0


@dataclass(frozen=True)
class Listing:
    """What there is to show. `problem`: why SLURM could not be asked, "" where it could."""

    rows: Sequence[Standing]
    hidden: Mapping[str, int]  # how many of each state are left out: they ended more than a day ago
    others: Sequence[Standing]  # jobs of ours that no run here was given to
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """The same for programs; times are unix seconds."""
        return {
            "runs": [asdict(row) for row in self.rows],
            "other_jobs": [asdict(row) for row in self.others],
            "hidden": dict(self.hidden),
            "problem": self.problem or None,
        }


class Queue:
    """SLURM's queue as it was when first asked; `problem` says why it could not be, "" where it could."""

    def __init__(self) -> None:
        self.problem = ""
        self._is_silent = False
        self._found: dict[str, JobRecord | None] = {}  # those that were looked for elsewhere
        self._unsure: set[str] = set()  # of these the ones that nobody knew and somebody may know

    @cached_property
    def mine(self) -> Mapping[str, JobRecord]:
        """The jobs of ours in it."""
        try:
            return my_jobs()
        except SchedulerUnavailable as error:
            self.problem, self._is_silent = str(error), True
            return {}

    def record(self, submission: Submission, *, sure: bool) -> JobRecord | None:
        """What is known of a job. Not `sure`: the queue may be silent on it, so it is looked for elsewhere."""
        known = self.mine.get(submission.job)
        if known is not None or self.problem == NO_SLURM:
            return known
        if submission.job in self._found:
            return self._found[submission.job]
        if sure and submission.user == user_name():
            return None
        try:
            record = find(submission.job)
        except SchedulerUnavailable as error:
            self.problem = self.problem or str(error)
            self._unsure.add(submission.job)
            return None
        self._found[submission.job] = record
        if record is not None and record.source != "squeue":
            self.problem = ""  # somebody answered
        return record

    def look_up(self, submissions: Iterable[Submission]) -> None:
        """Look for what is not in the queue: an array's elements together, however many they are."""
        missing = {entry.job for entry in submissions if entry.job not in self.mine}
        arrays = {array_of(job) for job in missing} - {""}
        for array in sorted(arrays) if self.problem != NO_SLURM else ():
            known, silent = find_elements(array)
            elements = {job for job in missing if array_of(job) == array}
            self._found |= {job: known.get(job) for job in elements}
            if silent and elements - known.keys():
                self.problem = self.problem or silent
                self._unsure |= elements - known.keys()

    def is_unsure(self, job: str) -> bool:
        """Whether nothing is known of a job that was asked for, and somebody did not answer."""
        return self._found.get(job) is None and (self._is_silent or job in self._unsure)


def list_jobs(runs: Path, *, every: bool = False) -> Listing:
    """How the runs under `runs` stand; those that ended more than a day ago only if `every`."""
    queue = Queue()
    mine = queue.mine
    folders = sorted(path.parent for path in runs.glob("*/run.json"))
    found, rows = [], []
    for folder in folders:
        try:
            run = RunFolder.open(folder)
            run.info(), run.read_status()
            found.append((run, last_job(run)))
        except UsageError as error:  # the others are shown all the same
            rows.append(Standing(folder.name, str(folder), "unreadable", str(error), changed=time.time()))
    owners = _newest(found)
    rows += [stand_in_queue(run, queue, owns=owners.get(job.job if job else "") == run) for run, job in found]
    shown = [row for row in rows if every or row.is_live or row.changed > time.time() - _RECENT_S]
    hidden = Counter(row.state for row in rows) - Counter(row.state for row in shown)
    others = [row for job, row in sorted(_without_run(mine).items()) if job not in owners] if every else []
    order = {state: number for number, state in enumerate(_ORDER)}
    shown.sort(key=lambda row: (order.get(row.state, len(order)), row.run))
    return Listing(shown, dict(hidden.most_common()), others, queue.problem)


def stand_in_queue(run: RunFolder, queue: Queue, *, owns: bool = True) -> Standing:
    """How a run stands; not `owns`: its job's number has been given to another run since."""
    submission = last_job(run)
    if submission is None or not owns:
        return standing(run, None)
    status = run.read_status()
    is_told = status.state not in ("new", "running") and not status.run_again
    record = queue.record(submission, sure=is_told)
    if record is not None and not is_of(record, run, submission):
        return standing(run, None)
    return standing(run, record, answered=record is not None or not queue.is_unsure(submission.job))


def _newest(found: Sequence[tuple[RunFolder, Submission | None]]) -> dict[str, RunFolder]:
    """The run that each job was last given to: a cluster that was set up anew counts from 1 again."""
    pairs = sorted(((job.time, run) for run, job in found if job), key=lambda pair: pair[0])
    return {job.job: run for _, run in pairs if (job := last_job(run))}


def _without_run(mine: Mapping[str, JobRecord]) -> dict[str, Standing]:
    rows = {}
    for job, record in mine.items():
        row = Standing(record.name, "", record.state.lower(), job=job, slurm_state=record.state)
        if record.state == "PENDING":
            note = why_it_waits(record.reason, job)
            if record.begin is not None:
                note += f", starts about {clock(record.begin)}"
            state = "held" if is_held(record.reason) else "pending"
            row = replace(row, state=state, note=note, estimated_start=record.begin)
        rows[job] = replace(
            row,
            nodes=record.nodes,
            slurm_reason=record.reason or None,
            source=record.source,
            job_end=record.end,
        )
    return rows
