"""Where the agents of a job's nodes meet, and what the first one tells the others: a file in the run folder.

    <run>/slurm/meeting-<job>.<restart>.json
      {"address", "port", "end_time", "exit_code"}

The first node's agent writes it when it listens, and again with its exit code when it is done: the others have
nothing to wait for then, and the batch script knows that it did not die.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_trainer.adapters.files import make_private_folder, write_json
from dist_trainer.adapters.records import read_record
from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.errors import DistTrainerError
from dist_trainer.run_folder import RunFolder

_POLL_S = 0.2


@dataclass(frozen=True)
class Meeting:
    """The newest word of the first node's agent."""

    address: str = ""
    port: int = 0
    end_time: float | None = None  # unix seconds, of the job's time limit
    exit_code: int | None = None  # the agent is done


def write_meeting(run: RunFolder, job: SlurmJob, meeting: Meeting) -> None:
    """Replace the file."""
    path = _path(run, job)
    make_private_folder(path.parent)
    write_json(path, asdict(meeting))


def read_meeting(run: RunFolder, job: SlurmJob) -> Meeting | None:
    """The newest word; None before the first."""
    try:
        return read_record(Meeting, _path(run, job).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def wait_for_meeting(run: RunFolder, job: SlurmJob, *, within_s: float, until: Callable[[], bool]) -> Meeting:
    """The first node's word. InterruptedError as soon as `until` says so, DistTrainerError after `within_s`."""
    deadline = time.monotonic() + within_s
    while (meeting := read_meeting(run, job)) is None:
        if until():
            raise InterruptedError
        if time.monotonic() > deadline:
            raise DistTrainerError(
                f"{_path(run, job)}: the first node's agent wrote nothing within {within_s:.0f} s; its own words "
                "are in the log beside it. Is the run folder on a file system that every node sees?"
            )
        time.sleep(_POLL_S)
    return meeting


def _path(run: RunFolder, job: SlurmJob) -> Path:
    return run.path / "slurm" / f"meeting-{job.job}.{job.restart}.json"
