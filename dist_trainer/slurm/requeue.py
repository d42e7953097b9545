"""Whether a job that stops goes back into the queue, why, and without which nodes.

A job that ends inside its grace period is not started again by SLURM: somebody has to ask. The first node's agent
does, and it alone; what SLURM has requeued already, and what a person cancelled, it leaves alone.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.errors import DistTrainerError, NoProgress
from dist_trainer.launchers.results import Ending
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.cluster_facts import nodes_to_choose_from
from dist_trainer.slurm.scheduler import JobRecord, SchedulerUnavailable
from dist_trainer.tracking.journal import last_saved_step

_FAILURES_OF_A_NODE = 2
_STARTS_WITHOUT_PROGRESS = 3
_EARLY_S = 150.0  # before the limit: SLURM may send its signal a minute early
_LATE_S = 5.0  # but it ends the job at the limit, not before
_AS_OFTEN_AS_IT_TAKES = ("preempted", "signal", "requeued")  # no failure of the run's
_OF_A_NODE = re.compile(
    r"CUDA error|NCCL|ECC|nvlink|Xid", re.IGNORECASE
)  # exceptions that its hardware may raise

Cause = Literal[
    "preempted", "time limit", "signal", "failure", "lost", "finished", "cancelled", "requeued", "overtaken"
]


@dataclass(frozen=True)
class Decision:
    """What becomes of the job; `cause` is what attempts.jsonl says."""

    requeue: bool
    cause: Cause
    says: str


def decide(
    ending: Ending, *, was_ended: bool, record: JobRecord | None, job: SlurmJob, now: float
) -> Decision:
    """Judge an ending. `was_ended`: TERM came; `record` is what the controller says of the job just now."""
    if ending.state == "finished":
        return Decision(False, "finished", "")
    if was_ended:
        if record and _has_been_requeued(record, job):
            return Decision(False, "requeued", "SLURM has put the job back into the queue")
        if _is_time_up(record, job, now, within_s=_LATE_S):
            return Decision(True, "time limit", "the job's time is up")
        if record and record.state == "PREEMPTED":
            return Decision(True, "preempted", "the job was preempted")
        if record and record.state == "RUNNING" and _lost_a_node(ending, job):
            return Decision(True, "lost", "another node's agent died")
        return Decision(False, "cancelled", "the job was cancelled")
    if ending.state == "stopped":
        if not ending.run_again:
            return Decision(False, "cancelled", "stopped by a signal")
        if (
            _is_time_up(record, job, now, within_s=_EARLY_S)
            or ending.run.read_status().reason == "time limit"
        ):
            return Decision(True, "time limit", "the job's time is nearly up")
        if record and record.preempted:
            return Decision(True, "preempted", "the job is preempted")
        return Decision(True, "signal", "SIGUSR2 asks for the machine")
    return Decision(ending.run_again, "failure", ending.message)


def _lost_a_node(ending: Ending, job: SlurmJob) -> bool:
    """Whether TERM came from srun, which ends the step when one of its tasks dies, and from no person.

    What a person ends is stopped in good order. Before workers run nothing else tells the two apart than that
    a person has no reason to spare the batch script.
    """
    if ending.failure is not None:
        return ending.run_again
    return job.node_count > 1 and not ending.began


def _is_time_up(record: JobRecord | None, job: SlurmJob, now: float, *, within_s: float) -> bool:
    if record and (record.state == "TIMEOUT" or record.reason == "TimeLimit"):
        return True
    # what the controller says of a job that is ending is when it ended
    end = record.end if record and record.end and record.state == "RUNNING" else job.end_time
    return end is not None and now > end - within_s and not (record and record.preempted)


def _has_been_requeued(record: JobRecord, job: SlurmJob) -> bool:
    return (record.restarts or 0) > job.restart or record.state in ("PENDING", "REQUEUED")


def give_back(run: RunFolder, job: SlurmJob, decision: Decision, say: Callable[[str], None]) -> int | None:
    """Put the job back into the queue; 93 where it failed too often without progress, None where it is done.

    Nothing of the job outlives this for long, so all that is to be written is written before. What still runs
    on a node that SLURM has lost leaves the job alone: it may train elsewhere by now.
    """
    record = ask(job)
    if record is not None and _has_been_requeued(record, job):
        say("SLURM has put the job back into the queue")
        return None
    step = last_saved_step(run.journal_path(0))
    if decision.cause not in _AS_OFTEN_AS_IT_TAKES and stands_still(run.attempts(), step, job.job):
        reason = (
            f"{decision.says}; the job was requeued {_STARTS_WITHOUT_PROGRESS} times, and never got beyond "
            f"{f'step {step}' if step else 'the start'}: not requeued"
        )
        say(reason)
        run.write_status(Status("do-not-requeue", reason, step))
        return NoProgress.exit_code
    excluded = _to_exclude(run, job, say)
    record_requeue(run, job, decision, excluded)
    without = f", without {', '.join(excluded)}: failed {_FAILURES_OF_A_NODE} times" if excluded else ""
    say(f"{decision.says}: requeued{without}")
    _requeue(job, say)
    if excluded:
        try:
            _insist(lambda: scheduler.exclude(job.job, excluded), say)
        except DistTrainerError as error:  # the run goes on, if only there
            say(f"{', '.join(excluded)} could not be excluded: {error}")
    return None


def _requeue(job: SlurmJob, say: Callable[[str], None]) -> None:
    try:
        _insist(lambda: scheduler.requeue(job.job), say)
    except SchedulerUnavailable:
        raise
    except DistTrainerError:  # SLURM was quicker, or a request that seemed lost got through
        record = ask(job)
        if record is None or not _has_been_requeued(record, job):
            raise


def record_requeue(run: RunFolder, job: SlurmJob, decision: Decision, excluded: Sequence[str] = ()) -> None:
    """The line of attempts.jsonl that says why the job goes back into the queue, whoever puts it there."""
    step = last_saved_step(run.journal_path(0))
    line = {"event": "requeue", "attempt": run.highest_fence(), "time": time.time(), "job": job.job}
    run.record({**line, "cause": decision.cause, "step": step, "excluded": excluded, "says": decision.says})


def _insist(act: Callable[[], None], say: Callable[[str], None]) -> None:
    """A controller that is busy or restarting is asked again; it has the grace period."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return act()
        except SchedulerUnavailable as error:
            if time.monotonic() > deadline:
                raise
            say(f"{error}; asking again")
            time.sleep(2)


def stands_still(attempts: Sequence[dict[str, Any]], step: int | None, job: str) -> bool:
    """Whether this job was requeued three times at the present step; preemptions neither count nor excuse."""
    lines = [line for line in attempts if line["event"] == "requeue" and line["job"] == job]
    counted = [line for line in lines if line["cause"] not in _AS_OFTEN_AS_IT_TAKES]
    recent = counted[-_STARTS_WITHOUT_PROGRESS:]
    return [line["step"] for line in recent] == [step] * _STARTS_WITHOUT_PROGRESS


def bad_nodes(attempts: Sequence[dict[str, Any]], job: str) -> list[str]:
    """Nodes on which attempts of this job failed twice, in a way that could be the node's doing."""
    ours = {line["attempt"] for line in attempts if line["event"] == "start" and line.get("job") == job}
    failed = [
        line["node"]
        for line in attempts
        if line["event"] == "end" and line.get("node") and line["attempt"] in ours and _is_of_a_node(line)
    ]
    return sorted({node for node in failed if failed.count(node) >= _FAILURES_OF_A_NODE})


def _is_of_a_node(end: dict[str, Any]) -> bool:
    hardware = end["cause"] == "failed" and _OF_A_NODE.search(end.get("error") or "")
    return end["cause"] in ("killed", "node failure") or bool(hardware)


def _to_exclude(run: RunFolder, job: SlurmJob, say: Callable[[str], None]) -> list[str]:
    """The bad nodes, if enough others are left for the job."""
    bad = bad_nodes(run.attempts(), job.job)
    if not bad:
        return []
    try:
        left = set(nodes_to_choose_from(job.job)) - set(bad)
    except DistTrainerError:
        return bad  # better one that waits than one that fails again
    if len(left) >= job.node_count:
        return bad
    say(f"{', '.join(bad)} failed {_FAILURES_OF_A_NODE} times, but without them too few nodes would be left")
    return []


def ask(job: SlurmJob) -> JobRecord | None:
    """What the controller says of our own job; None where it does not answer."""
    try:
        return scheduler.find_by_scontrol(job.job)
    except DistTrainerError:
        return None
