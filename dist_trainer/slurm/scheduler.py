"""What SLURM knows of a job, and the few things asked of it: the only reader of squeue, scontrol and sacct.

Plain text is asked for, never JSON, whose shape differs among SLURM's versions. A job is looked for with squeue,
then scontrol, then sacct, and the first that knows it is believed: a controller that is busy, restarting or
forgetful gives empty answers, so one of them proves nothing.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from dist_trainer.errors import DistTrainerError

NO_SLURM = "no SLURM answers on this machine; slurm/local/up of the repository starts a small one here"

_ASK_S = 20.0
_ACT_S = 60.0  # a busy controller takes its time to requeue
_LIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING", "RESV_DEL_HOLD"),
}
_ELEMENT = re.compile(r"_\d+$")
_UNKNOWN_JOB = re.compile(r"invalid job id|no such job|job (\S+ )?not found", re.IGNORECASE)
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled|accounting_storage/none", re.IGNORECASE)
_REFUSED = re.compile(
    r"job id|permission|not permitted|already compl|pending|disabled|invalid|no longer", re.IGNORECASE
)
_SQUEUE = "%i|%T|%N|%S|%e|%V|%r|%j"  # what may hold a bar of its own comes last
_SACCT = "JobID,State,NodeList,Start,End,Submit,ExitCode,Reason,JobName"


class SchedulerUnavailable(DistTrainerError):
    """SLURM is not there, or does not answer now; the message has its own words."""


@dataclass(frozen=True)
class JobRecord:
    """One job as SLURM sees it now; the fields that its source does not tell are None or empty."""

    job: str  # "123", an array's element "120_3"
    state: str  # SLURM's long word: PENDING, RUNNING, COMPLETING, PREEMPTED, NODE_FAIL, ...
    reason: str = ""  # SLURM's own word for why it waits or ended; "" where there is none
    nodes: str = ""  # SLURM's short form, n[1-3,7]
    restarts: int | None = None
    begin: float | None = None  # unix seconds: when it began, or is expected to
    end: float | None = None  # unix seconds: when it ended, or its time limit ends it
    exit_code: int | None = None
    source: Literal["squeue", "scontrol", "sacct"] = "squeue"
    name: str = ""
    submitted: float | None = None  # unix seconds; a requeue counts as a submission
    preempted: bool = False  # its grace period runs: only scontrol tells
    script: str = ""  # the path that sbatch was given: only scontrol tells

    @property
    def is_live(self) -> bool:
        """Whether SLURM still has something to do for it: waiting, running, ending, held."""
        return self.state in _LIVE


def is_there() -> bool:
    """Whether a SLURM answers here."""
    try:
        ask(["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i"])
    except SchedulerUnavailable:
        return False
    return True


def find(job: str) -> JobRecord | None:
    """What SLURM knows of a job (an array's element is "120_3"); None only if all who could know deny it.

    SchedulerUnavailable where nobody knows it and somebody did not answer.
    """
    silent: SchedulerUnavailable | None = None
    sources: tuple[Callable[[str], JobRecord | None], ...] = (find_by_squeue, find_by_scontrol, find_by_sacct)
    for source in sources:
        try:
            if (record := source(job)) is not None:
                return record
        except SchedulerUnavailable as error:
            silent = silent or error
    if silent is not None:
        raise silent
    return None


def find_by_squeue(job: str) -> JobRecord | None:
    """The job in the queue, ended ones of the last minutes included; None where squeue does not know it."""
    return _pick(job, records_by_squeue(job))


def find_by_scontrol(job: str) -> JobRecord | None:
    """The job by the controller: state, restarts and the real end; None where it does not know it."""
    return _pick(job, records_by_scontrol(job))


def find_by_sacct(job: str) -> JobRecord | None:
    """The job in the accounts, by its last incarnation; None where they do not know it, or are not kept."""
    return _pick(job, records_by_sacct(job))


def past_states(job: str) -> list[str]:
    """How the incarnations before the present one ended, oldest first; empty where no accounts are kept."""
    states = [record.state for record in records_by_sacct(job, "--duplicates") if record.job == job]
    return states[:-1]


def my_jobs() -> dict[str, JobRecord]:
    """Every job of mine in the queue, by its id. SchedulerUnavailable: squeue did not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={_SQUEUE}"]
    return {record.job: record for record in _from_squeue(ask(command))}


def requeue(job: str) -> None:
    """Put a job back into the queue."""
    _act("scontrol", "requeue", job)


def exclude(job: str, nodes: Sequence[str]) -> None:
    """Keep a pending job off these nodes, besides those it is kept off already."""
    shown = re.search(r"\bExcNodeList=(\S+)", ask(["scontrol", "show", "job", job]))
    before = hostnames(shown[1]) if shown and shown[1] != "(null)" else []
    names = ",".join(dict.fromkeys([*before, *nodes]))
    _act("scontrol", "update", f"JobId={job}", f"ExcNodeList={names}")


def cancel(*jobs: str) -> None:
    """Take jobs out of the queue, or end them. "120_[0-3,7]" are elements, cancelled all at once."""
    _act("scancel", *jobs)


def hostnames(nodelist: str) -> list[str]:
    """The names in SLURM's short form: n[1-3,7] is n1, n2, n3 and n7."""
    if not nodelist:
        return []
    return ask(["scontrol", "show", "hostnames", nodelist]).split()


def records_by_squeue(job: str) -> list[JobRecord]:
    """The job, or every element of the array; the same below."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", f"--format={_SQUEUE}"]
    return _from_squeue(ask(command, none=_UNKNOWN_JOB))


def records_by_scontrol(job: str) -> list[JobRecord]:
    """By the controller."""
    shown = ask(["scontrol", "show", "job", job], none=_UNKNOWN_JOB)
    return [_from_scontrol(text) for text in re.split(r"\n\s*\n", shown) if "JobState=" in text]


def _from_squeue(shown: str) -> list[JobRecord]:
    records = []
    for line in shown.splitlines():
        if line.count("|") < 7:
            continue
        job, state, nodes, begin, end, submitted, reason, name = line.split("|", maxsplit=7)
        records.append(
            JobRecord(
                job=job.strip(),
                state=state,
                reason=_word(reason),
                nodes=_word(nodes),
                begin=_time(begin),
                end=_time(end),
                name=name,
                submitted=_time(submitted),
            )
        )
    return records


def _from_scontrol(text: str) -> JobRecord:
    def value(key: str, pattern: str = r"\S+") -> str:
        found = re.search(rf"^\s+(?:.*\s)?{key}=({pattern})", text, re.MULTILINE)  # never in the job's name
        return found[1] if found else ""

    head = text.strip().splitlines()[0]
    array, element = re.search(r"\bArrayJobId=(\d+)", head), re.search(r"\bArrayTaskId=(\d+)(?=\s)", head)
    number = re.search(r"\bJobId=(\d+)", head)
    restarts, code = value("Restarts"), value("ExitCode").partition(":")[0]
    name = re.search(r"\bJobName=(.*)", head)
    return JobRecord(
        job=f"{array[1]}_{element[1]}" if array and element else number[1] if number else "",
        state=value("JobState"),
        reason=_word(value("Reason", r".*?(?=\s+Dependency=|$)")),
        nodes=_word(value("NodeList")),
        restarts=int(restarts) if restarts.isdigit() else None,
        begin=_time(value("StartTime")),
        end=_time(value("EndTime")),
        exit_code=int(code) if code.isdigit() else None,
        source="scontrol",
        name=name[1] if name else "",
        submitted=_time(value("SubmitTime")),
        preempted=_time(value("PreemptTime")) is not None,
        script=_word(value("Command", r".*")),
    )


def records_by_sacct(job: str, *options: str) -> list[JobRecord]:
    """By the accounts."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", *options]
    shown = ask([*command, f"--jobs={job}", f"--format={_SACCT}"], none=_NO_ACCOUNTING)
    records = []
    for line in shown.splitlines():
        if line.count("|") < 8:
            continue
        number, state, nodes, begin, end, submitted, code, reason, name = line.split("|", maxsplit=8)
        records.append(
            JobRecord(
                job=number,
                state=state.split()[0] if state else "",  # "CANCELLED by 1000"
                reason=_word(reason),
                nodes=_word(nodes),
                begin=_time(begin),
                end=_time(end),
                exit_code=int(code.partition(":")[0]) if code[:1].isdigit() else None,
                source="sacct",
                name=name,
                submitted=_time(submitted),
            )
        )
    return records


def _pick(job: str, records: Sequence[JobRecord]) -> JobRecord | None:
    """The job itself; of an array as a whole an element that lives, of an element that waits its array's line."""
    if "_" in job:
        found = [record for record in records if record.job == job]
        found = found or [record for record in records if not _ELEMENT.search(record.job)]
    else:
        live = [record for record in records if record.is_live]
        found = [record for record in records if record.job == job] or live or list(records)
    return found[-1] if found else None


def _word(text: str) -> str:
    text = text.strip()
    return "" if text in ("None", "(null)", "N/A", "None assigned", "Unknown") else text


def _time(text: str) -> float | None:
    """SLURM's local time as unix seconds; None where it knows none."""
    with suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    return None


def _act(*command: str) -> None:
    """Have something done; a refusal is an error with SLURM's own words."""
    try:
        ask(command, within_s=_ACT_S)
    except SchedulerUnavailable as error:
        if _REFUSED.search(str(error)):
            raise DistTrainerError(str(error)) from error
        raise


def ask(command: Sequence[str], *, none: re.Pattern[str] | None = None, within_s: float | None = None) -> str:
    """A command's output; "" where it fails with what `none` matches: then it is an answer."""
    name, within_s = command[0], within_s or _ASK_S
    if shutil.which(name) is None:
        raise SchedulerUnavailable(NO_SLURM)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=within_s,
            env=_environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise SchedulerUnavailable(f"{name} did not answer within {within_s:g} s") from None
    if done.returncode == 0 and not (none and none.search(done.stderr)):
        return done.stdout
    said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
    if none is not None and none.search(said):
        return ""
    if re.search(r"configuration source|slurm[.]conf", said):
        raise SchedulerUnavailable(NO_SLURM)
    raise SchedulerUnavailable(f"{' '.join(command[:3])}: {said}")


def _environment() -> dict[str, str]:
    """Ours, without what makes squeue and sacct show something else than they were asked for."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SINFO_", "SQUEUE_", "SACCT_", "SCONTROL_"))
    }
    return {**kept, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
