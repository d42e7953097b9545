"""Stops runs that SLURM trains or will train: their jobs are cancelled, what trains saves first."""

import socket
import time
from dataclasses import dataclass

from dist_trainer.adapters.file_lock import Owner
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.jobs.listing import Queue
from dist_trainer.jobs.standing import owner_of
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.scheduler import NO_SLURM, JobRecord, cancel, find
from dist_trainer.slurm.submissions import Submission, is_of, jobs_of
from dist_trainer.tracking.mlflow_sync import sync

_GONE_WITHIN_S = 3.0


@dataclass(frozen=True)
class Cancelled:
    """What became of one run. `done`: told (it trains, and stops), taken out (it waited), nothing."""

    run: str
    done: str
    message: str
    job: str | None = None
    exit_code: int = 0


def cancel_run(run: RunFolder, queue: Queue) -> Cancelled:
    """Cancel the jobs of a run that live. An error is in the answer, so that the other runs have their turn."""
    try:
        return _cancel(run, queue)
    except DistTrainerError as error:
        return Cancelled(run.path.name, "nothing", f"{run.path.name}: {error}", exit_code=error.exit_code)


def _cancel(run: RunFolder, queue: Queue) -> Cancelled:
    name = run.path.name
    if owner := local_owner(run):
        raise UsageError(owner)
    submissions = {submission.job: submission for submission in jobs_of(run)}
    if not submissions:
        return Cancelled(name, "nothing", f"{name}: nothing to cancel: {_ended(run)}")
    known = {job: _ours(queue.record(entry, sure=True), run, entry) for job, entry in submissions.items()}
    if queue.problem == NO_SLURM:
        raise DistTrainerError(NO_SLURM)
    last = list(submissions)[-1]
    known[last] = known[last] or _ours(find(last), run, submissions[last])  # the queue's silence is no proof
    live = [record for record in known.values() if record is not None and record.is_live]
    if not live:
        record = known[last]
        state = record.state if record else "SLURM knows it no more"
        return Cancelled(name, "nothing", f"{name}: nothing to cancel: job {last} is over ({state})", last)
    ended = [_cancel_job(run, record) for record in live]
    return ended[-1]


def _ours(record: JobRecord | None, run: RunFolder, submission: Submission) -> JobRecord | None:
    return record if record is not None and is_of(record, run, submission) else None


def _cancel_job(run: RunFolder, record: JobRecord) -> Cancelled:
    name, job = run.path.name, record.job
    cancel(job)
    if record.state == "PENDING" and _never_began(job):
        note_stopped(run)
        again = "dist-trainer submit goes on with it" if run.attempts() else "it had not started"
        told = f"{name}: job {job} is taken out of the queue; {again}{_tell_mlflow(run)}"
        return Cancelled(name, "taken out", told, job)
    how = f"dist-trainer logs {name} -f shows how"
    return Cancelled(name, "told", f"{name}: job {job} is told to stop; it saves first ({how})", job)


def _never_began(job: str) -> bool:
    """Whether a job that waited is gone without having been given a node."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while time.monotonic() < deadline:
        record = find(job)
        if record is None or not record.is_live:
            return record is None or not record.nodes
        time.sleep(0.2)
    return False


def local_owner(run: RunFolder) -> str:
    """Who trains it without SLURM, and how to stop that; "" where nobody does."""
    owner = owner_of(run)
    return _local(owner) if owner is not None and owner.job is None else ""


def note_stopped(run: RunFolder) -> None:
    """The run's folder tells it too: nobody else is there to write it. How it had ended before is kept."""
    status = run.read_status()
    if status.state in ("new", "running", "stopped"):
        reason = "cancelled" if run.attempts() else "cancelled before it started"
        run.write_status(Status("stopped", reason, status.step, results=status.results))


def _tell_mlflow(run: RunFolder) -> str:
    """MLflow still says SCHEDULED, and no worker will tell it otherwise; "" or what stood in the way."""
    if run.info().mlflow_run_id is None:
        return ""
    try:
        problem = sync(run).problem
    except DistTrainerError as error:
        problem = str(error)
    return f"; MLflow does not know yet (dist-trainer sync {run.path.name}): {problem}" if problem else ""


def _ended(run: RunFolder) -> str:
    state = run.read_status().state
    how = {"new": "it has not started", "running": "nothing trains it any more"}.get(state, f"it is {state}")
    return f"{how}, and it was never submitted"


def _local(owner: Owner) -> str:
    where = "here" if owner.host == socket.gethostname() else f"on {owner.host}"
    stop = f"kill {owner.pid}" if where == "here" else f"ssh {owner.host} kill {owner.pid}"
    return (
        f"it is trained {where} by pid {owner.pid}, not by SLURM; Ctrl-C there or {stop} stops and saves it"
    )
