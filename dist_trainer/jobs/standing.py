"""How one run stands, in words: what SLURM says of its job, put together with what its folder says."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dist_trainer.adapters.file_lock import Owner, read_owner
from dist_trainer.jobs.pace import Pace, pace_of
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.reasons import how_it_ended, is_held, why_it_waits
from dist_trainer.slurm.scheduler import JobRecord
from dist_trainer.slurm.submissions import Submission, last_job

DONE = ("finished",)  # nothing is left to do for such a run
WAITING = ("pending", "preempted", "requeued", "held")
_ONLY_SIGNALS = ("SIGTERM or SIGINT", "SIGUSR2", "signal")  # how it was told, which is no reason
_STARTED_SLACK_S = 2.0  # SLURM's times are whole seconds


@dataclass(frozen=True)
class Standing:
    """One line of `jobs`. Times are unix seconds."""

    run: str
    folder: str
    state: (
        str  # running, starting, pending, preempted, requeued, held, ending, finished, stopped, failed, ...
    )
    note: str = ""  # what else there is to say, in one sentence
    job: str | None = None
    slurm_state: str | None = None
    slurm_reason: str | None = None
    estimated_start: float | None = None
    job_end: float | None = None  # when the time limit ends the job
    nodes: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    remaining_s: float | None = None
    attempts: int = 0
    last_cause: str | None = None  # how the last attempt ended
    changed: float = 0.0  # when something was last heard of it: that it was submitted, trains, has ended
    source: str = "folder"  # who knew of the job: squeue, scontrol, sacct, or only the run's folder

    @property
    def is_live(self) -> bool:
        """Whether something trains it, or will without being asked again."""
        return self.state in ("running", "starting", "ending", *WAITING)


@dataclass(frozen=True)
class _Seen:
    """All that the standing is made of."""

    status: Status
    lines: Sequence[Mapping[str, Any]]
    pace: Pace
    submission: Submission | None
    record: JobRecord | None
    owner: Owner | None
    answered: bool

    @property
    def last(self) -> Mapping[str, Any]:
        """The last line of attempts.jsonl."""
        return self.lines[-1] if self.lines else {}

    @property
    def was_requeued(self) -> bool:
        """Whether the job that waits has trained the run before."""
        job = self.record.job if self.record else None
        return any(line.get("job") == job for line in self.lines if line["event"] == "start")


def standing(run: RunFolder, record: JobRecord | None, *, answered: bool = True) -> Standing:
    """`record` is what SLURM says of the run's last job, None where it knows none; `answered`: it could be asked."""
    seen = _Seen(
        run.read_status(), run.attempts(), pace_of(run), last_job(run), record, owner_of(run), answered
    )
    state, note = _with_job(seen, record) if record and record.is_live else _without_job(seen)
    live = record if record and record.is_live else None
    goes_on = live is not None or state == "running"
    return Standing(
        run=run.path.name,
        folder=str(run.path),
        state=state,
        note=note,
        job=record.job if record else seen.submission.job if seen.submission else None,
        slurm_state=record.state if record else None,
        slurm_reason=record.reason or None if record else None,
        estimated_start=live.begin if live and live.state == "PENDING" else None,
        job_end=live.end if live and live.state == "RUNNING" else None,
        nodes=record.nodes if live and record else "",
        step=seen.status.step if state in DONE else seen.pace.step,
        total_steps=seen.pace.total_steps,
        loss=seen.pace.loss,
        remaining_s=seen.pace.remaining_s if goes_on else None,
        attempts=len([line for line in seen.lines if line["event"] == "start"]),
        last_cause=last_cause(seen.lines),
        changed=_last_heard(run, seen),
        source=record.source if record else "folder",
    )


def _last_heard(run: RunFolder, seen: _Seen) -> float:
    submitted = seen.submission.time if seen.submission else 0.0
    told = (seen.status.time, seen.pace.beat_time or 0.0, float(seen.last.get("time", 0.0)))
    return max(run.info().created, submitted, *told)


def last_cause(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """How the last attempt that ended did: the requeue's word where there is one."""
    for line in reversed(lines):
        if line["event"] in ("end", "requeue") and line.get("cause"):
            return str(line["cause"])
    return None


def owner_of(run: RunFolder) -> Owner | None:
    """Who holds the run's lock; one of this host that is dead by now holds nothing."""
    owner = read_owner(run.path / "run.lock")
    if owner is None or owner.host != socket.gethostname() or owner.job is not None:
        return owner
    with suppress(OSError):
        os.kill(owner.pid, 0)
        return owner
    return None


def clock(moment: float, now: float | None = None) -> str:
    """14:03 today, Tue 14:03 in the week ahead, else the date too."""
    now = time.time() if now is None else now
    then = time.localtime(moment)
    if then[:3] == time.localtime(now)[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if 0 < moment - now < 6 * 86_400 else "%Y-%m-%d %H:%M", then)


def _with_job(seen: _Seen, record: JobRecord) -> tuple[str, str]:
    if record.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"):
        return _waiting(seen, record)
    over = seen.status.state in ("finished", "failed", "do-not-requeue", "stopped")
    if over and seen.status.time >= (record.begin or 0.0):
        how = seen.status.reason.splitlines()[:1]
        return "ending", "; ".join([f"{seen.status.state}, and its job is just ending", *how])
    if record.state == "COMPLETING":
        return "ending", "its job is just ending"
    if record.state in ("SUSPENDED", "STOPPED"):
        return "held", f"SLURM has put it to sleep ({record.state})"
    beat = seen.pace.beat_time
    if record.state == "CONFIGURING" or beat is None or beat < (record.begin or 0.0) - _STARTED_SLACK_S:
        return "starting", _attempts_note(seen)
    return "running", _attempts_note(seen)


def _waiting(seen: _Seen, record: JobRecord) -> tuple[str, str]:
    why = why_it_waits(record.reason, record.job)
    if is_held(record.reason) or record.state != "PENDING":
        return "held", why
    later = record.begin is not None and record.begin > time.time()
    if record.reason == "BeginTime" and later and record.begin is not None:
        why = f"starts {'again ' if seen.was_requeued else ''}after {clock(record.begin)} (BeginTime)"
    elif later and record.begin is not None:
        why = f"{why}, starts about {clock(record.begin)}"
    if not seen.was_requeued:
        return "pending", why
    cause = last_cause(seen.lines) or "requeued"
    state = "preempted" if cause == "preempted" else "requeued"
    saved = seen.last.get("step") or seen.status.step
    said = [] if cause in (state, *_ONLY_SIGNALS) else [cause]
    return state, "; ".join([", ".join([*said, *([f"saved at step {saved}"] if saved else [])]), why]).lstrip(
        "; "
    )


def _without_job(seen: _Seen) -> tuple[str, str]:
    status, owner = seen.status, seen.owner
    if owner is not None and owner.job is None:
        where = "here" if owner.host == socket.gethostname() else f"on {owner.host}"
        return "running", f"trained {where} by pid {owner.pid}, without SLURM"
    if status.state == "running" and seen.submission and not seen.answered:
        return "running", f"by its folder; last sign of life {_ago(seen.pace.beat_time)}"
    if status.state in ("running", "new"):
        return _without_a_word(seen)
    reason = status.reason.splitlines()[0] if status.reason else ""
    if status.state == "stopped" and status.run_again and seen.answered:
        reason = f"{reason}; it was to be run again, but has no job: submit it again"
    return status.state, reason


def _without_a_word(seen: _Seen) -> tuple[str, str]:
    """The folder says that it runs, or is new, and nothing trains it."""
    record = seen.record
    if record is not None and record.state == "CANCELLED":
        return "stopped", "cancelled" if seen.status.state == "running" else "cancelled before it started"
    if record is not None:
        more = "; logs --rank agent may tell more"
        return "lost", f"SLURM says: {how_it_ended(record.state)} ({record.state}){more}"
    if seen.status.state == "new":
        if seen.submission and seen.answered:
            return (
                "new",
                f"SLURM no longer knows job {seen.submission.job}, which never started: submit it again",
            )
        return "new", "submitted, not started yet" if seen.submission else "not started yet"
    return "lost", "ended without a word; the same command goes on from its last checkpoint"


def _ago(moment: float | None) -> str:
    return "unknown" if moment is None else f"at {clock(moment)}"


def _attempts_note(seen: _Seen) -> str:
    starts = len([line for line in seen.lines if line["event"] == "start"])
    cause = last_cause(seen.lines)
    return f"attempt {starts}; the one before: {cause}" if starts > 1 and cause else ""
