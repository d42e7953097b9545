"""Stops a sweep that SLURM runs: its cells are cancelled all at once; what only waited is noted as stopped."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.errors import DistTrainerError
from dist_trainer.jobs.cancel import Cancelled, cancel_run, local_owner, note_stopped
from dist_trainer.jobs.listing import Queue
from dist_trainer.run_folder import RunFolder, find_run
from dist_trainer.slurm.array_elements import together
from dist_trainer.slurm.scheduler import NO_SLURM, JobRecord, SchedulerUnavailable, cancel
from dist_trainer.slurm.submissions import Submission, is_of, jobs_of, last_job
from dist_trainer.sweep_folder import SweepFolder
from dist_trainer.sweeps.sending import settle
from dist_trainer.tracking.mlflow_sync import sync

_GONE_WITHIN_S = 3.0
_LOOK_EVERY_S = 0.3


@dataclass(frozen=True)
class _Live:
    """A job of a cell that SLURM still has."""

    run: RunFolder
    submission: Submission
    record: JobRecord


def named(name: str, runs: Path) -> RunFolder | SweepFolder:
    """The sweep or the run of that name, or the run in that folder. UsageError where there is none."""
    is_sweep = (runs / name / "sweep.json").is_file()
    return SweepFolder.open(runs / name) if is_sweep else find_run(name, runs)


def cancel_all(found: Sequence[RunFolder | SweepFolder]) -> list[Cancelled]:
    """Cancel each; an answer for each run, and for each cell that is not finished."""
    queue = Queue()
    answers: list[Cancelled] = []
    for each in found:
        answers += [cancel_run(each, queue)] if isinstance(each, RunFolder) else cancel_sweep(each)
    return answers


def cancel_sweep(folder: SweepFolder) -> list[Cancelled]:
    """What became of each cell that is not finished. Cells that fared alike have the same message."""
    try:
        with folder.lock():  # else cells could just be on their way to SLURM
            settle(folder)
            return _cancel(folder, Queue())
    except DistTrainerError as error:
        name = folder.path.name
        return [Cancelled(name, "nothing", f"{name}: {error}", exit_code=error.exit_code)]


def _cancel(folder: SweepFolder, queue: Queue) -> list[Cancelled]:
    name, there = folder.path.name, [folder.folder_of(cell) for cell in folder.sweep.cells]
    runs = [RunFolder.open(path) for path in there if (path / "run.json").is_file()]
    runs = [run for run in runs if run.read_status().state != "finished"]
    queue.look_up(job for run in runs if (job := last_job(run)))
    if queue.problem == NO_SLURM:
        raise SchedulerUnavailable(NO_SLURM)
    live = {run: found for run in runs if (found := _live(run, queue))}
    if live:
        cancel(*together(each.record.job for found in live.values() for each in found))
    gone = _taken_out({run: found[-1] for run, found in live.items()})
    for run in gone:
        note_stopped(run)
    words = {
        "told": f"{name}: {len(live) - len(gone)} cells are told to stop; they save first"
        f" (dist-trainer sweep status {name} shows how)",
        "taken out": f"{name}: {len(gone)} cells are taken out of the queue{_tell_mlflow(gone)}",
    }
    return [_answer(run, live.get(run), gone, words, queue) for run in runs]


def _live(run: RunFolder, queue: Queue) -> list[_Live]:
    """Its jobs that live, the newest last; squeue and the answer for all elements of its array tell."""
    found = []
    for submission in {entry.job: entry for entry in jobs_of(run)}.values():
        record = queue.record(submission, sure=True)
        if record is not None and record.is_live and is_of(record, run, submission):
            found.append(_Live(run, submission, record))
    return found


def _taken_out(live: dict[RunFolder, _Live]) -> list[RunFolder]:
    """Those that waited, and are gone without having been given a node."""
    waiting = {run: each for run, each in live.items() if each.record.state == "PENDING"}
    deadline, gone = time.monotonic() + _GONE_WITHIN_S, list[RunFolder]()
    while waiting:
        queue = Queue()
        queue.look_up(each.submission for each in waiting.values())
        for run, each in list(waiting.items()):
            record = queue.record(each.submission, sure=False)
            if queue.is_unsure(each.submission.job) or (record and record.is_live):
                continue
            waiting.pop(run)
            if record is None or not record.nodes:
                gone.append(run)
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_EVERY_S)  # for all of them together
    return gone


def _tell_mlflow(gone: Sequence[RunFolder]) -> str:
    """MLflow still says SCHEDULED of those that it knows; "" or what stood in the way."""
    known = [run for run in gone if run.info().mlflow_run_id is not None]
    try:
        problem = sync(*known).problem if known else ""
    except DistTrainerError as error:
        problem = str(error)
    return f"; MLflow does not know yet (dist-trainer sync RUN tells it of one): {problem}" if problem else ""


def _answer(
    run: RunFolder, live: list[_Live] | None, gone: Sequence[RunFolder], words: dict[str, str], queue: Queue
) -> Cancelled:
    name, last = run.path.name, last_job(run)
    if live:
        done = "taken out" if run in gone else "told"
        return Cancelled(name, done, words[done], live[-1].record.job)
    if owner := local_owner(run):
        return Cancelled(name, "nothing", f"{name}: {owner}", exit_code=2)
    if last is None:
        return Cancelled(name, "nothing", f"{name}: nothing to cancel: it was never submitted")
    if queue.is_unsure(last.job):
        return Cancelled(
            name, "nothing", f"{name}: SLURM may still have job {last.job}: {queue.problem}", exit_code=1
        )
    return Cancelled(name, "nothing", f"{name}: nothing to cancel: job {last.job} is over", last.job)
