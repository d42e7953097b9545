"""The array job that is just given to SLURM: one whose number does not reach us is found again, and not sent twice.

<sweep>/slurm/sending.json   there from before sbatch has the job until its cells' folders tell its number
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_trainer.adapters.files import write_json
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.array_elements import array_of
from dist_trainer.slurm.submissions import Submission, add_job, jobs_of
from dist_trainer.sweep_folder import SweepFolder

_CLOCKS_DIFFER_S = 60.0


@dataclass(frozen=True)
class Sending:
    """What the cells' folders are to say of the job."""

    cells: Sequence[int]
    time: float
    nodes: int
    code: str | None  # the copy of the code, and the script, in the sweep's folder
    script: str


def begin(folder: SweepFolder, sending: Sending) -> None:
    """From now on SLURM may have the job."""
    write_json(_path(folder), asdict(sending))


def drop(folder: SweepFolder) -> None:
    """SLURM does not have it."""
    _path(folder).unlink(missing_ok=True)


def note(folder: SweepFolder, sending: Sending, number: str) -> None:
    """SLURM has it: write its elements into the cells' run folders."""
    for index in sending.cells:
        run = folder.run_of(folder.cell(index))
        if f"{number}_{index}" not in {job.job for job in jobs_of(run)}:
            _note(run, f"{number}_{index}", sending, f"../{folder.path.name}")
    drop(folder)


def settle(folder: SweepFolder) -> None:
    """End what was cut short. SchedulerUnavailable where it cannot be known whether SLURM has the job."""
    with suppress(FileNotFoundError):
        sending = Sending(**json.loads(_path(folder).read_text()))
        number = find(folder, sending)
        if number is None:
            drop(folder)
        else:
            note(folder, sending, number)


def find(folder: SweepFolder, sending: Sending) -> str | None:
    """The number of the job that came of it: by a cell that it has trained, or by the queue; None: there is none."""
    runs = [folder.run_of(folder.cell(index)) for index in sending.cells]
    known = {array_of(job.job) for run in runs for job in jobs_of(run)} | {""}
    since = sending.time - _CLOCKS_DIFFER_S
    lines = [line for run in runs for line in run.attempts()]
    started = [
        str(line.get("job") or "") for line in lines if line["event"] == "start" and line["time"] > since
    ]
    if new := [array_of(job) for job in started if array_of(job) not in known]:
        return new[-1]
    mine = [job for job in scheduler.my_jobs().values() if job.name == folder.sweep.name]
    queued = [array_of(job.job) for job in mine if (job.submitted or 0) > since]
    return next((array for array in queued if array not in known), None)


def _path(folder: SweepFolder) -> Path:
    return folder.path / "slurm" / "sending.json"


def _note(run: RunFolder, element: str, sending: Sending, up: str) -> None:
    code = f"{up}/{sending.code}" if sending.code else None
    script = f"{up}/{sending.script}"
    add_job(run, Submission(element, nodes=sending.nodes, code=code, script=script, time=sending.time))
    for node in range(sending.nodes):
        name = f"{element}_{node}_log.out"
        with suppress(FileExistsError):
            (run.path / "slurm" / name).symlink_to(f"../{up}/slurm/{name}")
