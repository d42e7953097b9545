"""Which jobs a run was given to: the link from a run's folder to SLURM's queue.

    <run>/slurm/jobs.jsonl   one line per submission, oldest first; a requeue is none, its job keeps its id
      {"job": "123", "time": 1730000000.1, "user": "ada", "nodes": 2, "code": "code/0001",
       "script": "slurm/0001.sbatch"}

An array's element is "120_3". `code` is null where no snapshot was made. Imports no torch.
"""

import os
import pwd
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dist_trainer.adapters.files import append_line, make_private_folder, whole_lines
from dist_trainer.adapters.records import check_record
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.scheduler import JobRecord

CLOCKS_DIFFER_S = 60.0  # ours and the controller's
_PLAIN_SCRIPTS = "dist-trainer"  # the job's name in slurm/train.sbatch


def user_name() -> str:
    """Who we are; the number where this machine has no name for it."""
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


@dataclass(frozen=True)
class Submission:
    """One submission of a run; paths are relative to the run's folder."""

    job: str
    nodes: int = 1
    code: str | None = None
    script: str | None = None
    user: str = field(default_factory=user_name)
    time: float = field(default_factory=time.time)


def jobs_path(run: RunFolder) -> Path:
    """Where the lines are."""
    return run.path / "slurm" / "jobs.jsonl"


def add_job(run: RunFolder, submission: Submission) -> None:
    """Append a submission, synced."""
    path = jobs_path(run)
    make_private_folder(path.parent)
    append_line(path, asdict(submission))


def jobs_of(run: RunFolder) -> list[Submission]:
    """Every submission, oldest first; a line torn by a crash is left out."""
    path = jobs_path(run)
    if not path.exists():
        return []
    found = []
    for line in whole_lines(path.read_bytes()):
        with suppress(ValueError):
            found.append(check_record(Submission, line))
    return found


def next_script(folder: Path) -> Path:
    """Where the next batch script of a run or a sweep in this folder goes; makes the folder it is in."""
    scripts = folder / "slurm"
    make_private_folder(scripts)
    numbers = [int(path.stem) for path in scripts.glob("*.sbatch") if path.stem.isdigit()]
    return scripts / f"{max(numbers, default=0) + 1:04d}.sbatch"


def last_job(run: RunFolder) -> Submission | None:
    """The newest submission; None for a run that was never submitted."""
    submissions = jobs_of(run)
    return submissions[-1] if submissions else None


def is_of(record: JobRecord, run: RunFolder, submission: Submission) -> bool:
    """Whether the job that SLURM shows is still the run's: a cluster that is set up anew counts from 1 again.

    A job that came into the queue before ours was sent is not ours; one that came later may be, by a requeue.
    A plain batch script's job may have any name, and its line is written after it came into the queue.
    """
    sweep = run.info().sweep
    names = {run.path.name, Path(sweep).name if sweep else run.path.name}
    if submission.script is not None:
        came = record.submitted is None or record.submitted >= submission.time - CLOCKS_DIFFER_S
        return came and record.name in {"", *names}
    if record.name in {"", _PLAIN_SCRIPTS, *names}:
        return True
    began = record.submitted is None or record.submitted <= submission.time + CLOCKS_DIFFER_S
    again = (line for line in run.attempts() if line.get("job") == submission.job)
    return began or any(line["event"] == "requeue" or line.get("restart") for line in again)
