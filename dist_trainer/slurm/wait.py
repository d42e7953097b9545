"""Waits for a submitted run to end, over all requeues, and ends as the run itself did."""

import sys
import time

from dist_trainer.errors import FINISHED, STOPPED, NoProgress
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.reasons import how_it_ended
from dist_trainer.slurm.scheduler import JobRecord, SchedulerUnavailable, find
from dist_trainer.slurm.submissions import Submission, last_job

_ASK_EVERY_S = 5.0
_WORD_WITHIN_S = 15.0  # a shared file system may show the last word late
_FAILED = 1


def wait_for_end(run: RunFolder, *, ask_every_s: float = _ASK_EVERY_S) -> int:
    """The run's own exit code, once its job is over: 0, 75, 2, 65, 93 or 1.

    A job that vanished without a word of the run is 1, with SLURM's state and reason in the message. Ctrl-C
    leaves the job as it is.
    """
    submission = last_job(run)
    assert submission is not None, "the run has been submitted"
    try:
        record = _wait(run, submission, ask_every_s)
        return _exit_code(run, submission, record)
    except KeyboardInterrupt:
        print(
            f"\nno longer waiting; job {submission.job} goes on"
            f" (dist-trainer jobs {run.path.name}; dist-trainer cancel {run.path.name} stops it)",
            file=sys.stderr,
        )
        return 130


def _wait(run: RunFolder, submission: Submission, ask_every_s: float) -> JobRecord | None:
    """What SLURM says of the job after its end; None where it has forgotten it. Outages are waited out."""
    told, missing = "", 0
    while True:
        try:
            record = find(submission.job)
        except SchedulerUnavailable as error:
            if str(error) != told:
                told = str(error)
                print(f"{told}; still waiting", file=sys.stderr)
        else:
            missing = 0 if record else missing + 1
            if (record and not record.is_live) or missing > 1:  # once proves nothing
                return record
        time.sleep(ask_every_s)


def _exit_code(run: RunFolder, submission: Submission, record: JobRecord | None) -> int:
    status = _last_word(run, submission)
    if status is None:
        print(_vanished(run, submission, record), file=sys.stderr)
        return _FAILED
    if status.state == "finished":
        return FINISHED
    if status.state == "stopped":
        return STOPPED
    if status.reason:
        print(status.reason, file=sys.stderr)
    if status.state == "do-not-requeue":
        return NoProgress.exit_code
    ends = [line for line in run.attempts() if line["event"] == "end" and line["time"] >= submission.time]
    return int(ends[-1].get("exit_code") or _FAILED) if ends else _FAILED


def _last_word(run: RunFolder, submission: Submission) -> Status | None:
    """How the run ended, by what this job's workers or agents wrote; None where they wrote nothing."""
    deadline = time.monotonic() + _WORD_WITHIN_S
    while True:
        status = run.read_status()
        if status.state not in ("new", "running") and status.time >= submission.time:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.5)


def _vanished(run: RunFolder, submission: Submission, record: JobRecord | None) -> str:
    slurm = "SLURM knows it no more"
    if record is not None:
        reason = f", {record.reason}" if record.reason else ""
        code = f", exit code {record.exit_code}" if record.exit_code else ""
        slurm = f"SLURM says {record.state}{reason}{code}: {how_it_ended(record.state)}"
    logs = f"dist-trainer logs {run.path.name} --rank agent"
    return f"{run.path.name}: job {submission.job} is over, and the run left no word of its end; {slurm}; see {logs}"
