"""What others than the run itself know of its end: SLURM of its job, the kernel of memory that ran out."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.diagnose.evidence import UNREADABLE, Evidence
from dist_trainer.errors import DistTrainerError
from dist_trainer.jobs.listing import Queue, stand_in_queue
from dist_trainer.jobs.standing import Standing
from dist_trainer.slurm.reasons import how_it_ended, why_it_waits
from dist_trainer.slurm.scheduler import JobRecord, find
from dist_trainer.slurm.submissions import CLOCKS_DIFFER_S, Submission, is_of, jobs_of

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class SlurmWord:
    """What SLURM says of the job that trained the attempt, or trains the run now."""

    job: str
    state: str = ""  # its own word: OUT_OF_MEMORY, TIMEOUT, NODE_FAIL, PREEMPTED, ...
    reason: str = ""
    exit_code: int | None = None
    nodes: str = ""
    source: str = ""
    says: str = ""  # all of it as one sentence
    is_live: bool = False


def slurm_word(evidence: Evidence) -> SlurmWord | None:
    """None for an attempt that SLURM has nothing to do with: it knew of none, or of jobs before it alone."""
    with suppress(*UNREADABLE):
        submissions = {entry.job: entry for entry in jobs_of(evidence.run)}
        job = (evidence.start or {}).get("job")
        if job and (own := submissions.get(str(job))) is not None:
            return _ask(evidence, own)
        if evidence.is_newest and submissions:
            word = _ask(evidence, list(submissions.values())[-1])
            # what began elsewhere is told of a job that has the run now, and of no other
            if word is not None and (word.is_live or evidence.start is None):
                return word
        return SlurmWord(str(job), says=f"job {job}, of which this folder knows no more") if job else None
    return None


def _ask(evidence: Evidence, submission: Submission) -> SlurmWord | None:
    """None where the job was over before the attempt began."""
    job = submission.job
    try:
        record = find(job)
    except DistTrainerError as error:
        return SlurmWord(job, says=f"job {job}: {error}")
    if record is None:
        return SlurmWord(job, says=f"job {job}: SLURM knows it no more")
    if not is_of(record, evidence.run, submission):
        return SlurmWord(job, says=f"job {job}: SLURM has given this number to another job since")
    if evidence.start is None and _was_over(record, evidence.began):
        return None
    return SlurmWord(
        job,
        state=record.state,
        reason=record.reason,
        exit_code=record.exit_code,
        nodes=record.nodes,
        source=record.source,
        says=_sentence(record),
        is_live=record.is_live,
    )


def _was_over(record: JobRecord, began: float | None) -> bool:
    if record.is_live or record.end is None or began is None:
        return False
    return record.end < began - CLOCKS_DIFFER_S


def _sentence(record: JobRecord) -> str:
    if record.state == "PENDING":
        words = why_it_waits(record.reason, record.job)
    elif record.is_live:
        words = record.state.lower()
    else:
        words = how_it_ended(record.state)
        if record.reason and record.reason != record.state:
            words += f" ({record.reason})"
        if record.exit_code:
            words += f", exit code {record.exit_code}"
    nodes = f" on {record.nodes}" if record.nodes else ""
    return f"job {record.job}{nodes}: {record.state}: {words}; by {record.source}"


def standing_of(evidence: Evidence) -> Standing | None:
    """How the run and its job stand together; None where too much of its folder cannot be read."""
    with suppress(*UNREADABLE):
        return stand_in_queue(evidence.run, Queue())
    return None


def memory_word() -> str:
    """The kernel's count of processes that it ended for want of memory; "" where it does not tell.

    It counts for the control group of whoever asks, since that began: a hint, and no proof.
    """
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        named = [(_CGROUPS / group.lstrip("/"), "memory.events")] if not controllers else []
        if "memory" in controllers.split(","):
            named = [(_CGROUPS / "memory" / group.lstrip("/"), "memory.oom_control")]
        for folder, file in named:
            found = re.search(r"^oom_kill (\d+)$", "\n".join(_lines(folder / file)), re.MULTILINE)
            if found and int(found[1]):
                return (
                    f"the kernel has ended {found[1]} processes for want of memory in the control group of this "
                    f"shell ({folder})"
                )
            if found:
                return "the kernel has ended no process for want of memory in the control group of this shell"
    return ""


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().splitlines()
    return []
