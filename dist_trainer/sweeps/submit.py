"""Gives the cells of a sweep to SLURM: one array job whose element i trains cell i.

Script, log and code are in the sweep's folder; each cell's run folder links to what its element prints.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dist_trainer.config.load import Loaded, load_config
from dist_trainer.errors import FINISHED, ConfigError
from dist_trainer.launchers.results import in_folder
from dist_trainer.slurm import script as slurm
from dist_trainer.slurm.cluster_options import option_problems, setup_problems
from dist_trainer.slurm.code_files import find_code
from dist_trainer.slurm.code_snapshot import Snapshot, plan_snapshot, remove_snapshot, write_snapshot
from dist_trainer.slurm.scheduler import SchedulerUnavailable
from dist_trainer.slurm.submission_words import warn
from dist_trainer.slurm.submissions import next_script
from dist_trainer.slurm.submit_checks import (
    batch_problems,
    check_store,
    cores_hint,
    refusal,
    refuse_unwritable,
    tracking_warning,
)
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder
from dist_trainer.sweeps import sending
from dist_trainer.sweeps.plan import cell_config, import_cells
from dist_trainer.sweeps.sending import Sending

Modules = Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class ArrayJob:
    """A job that nothing speaks against, and its cells."""

    cells: Sequence[Cell]
    script: str
    snapshot: Snapshot | None
    first: Loaded  # the configuration of one of its cells: what concerns SLURM is the same in all
    estimate: str  # of its start, in SLURM's words


def check_for_slurm(loaded: Loaded) -> list[tuple[str, str]]:
    """What is wrong with a cell for a job."""
    return [*setup_problems(loaded), *batch_problems(loaded.config), *option_problems(loaded)]


def modules_of(folder: SweepFolder, cells: Sequence[Cell]) -> Modules:
    """The user's own modules that the cells import. ConfigError where the code does not fit them any more."""
    configs = [cell_config(folder, cell) for cell in cells]
    numbers, imported = import_cells(configs, Path(folder.sweep.working_folder))
    problems = [
        f"cell {cell.index} ({cell.shown}): {key} {message}"
        for cell, number in zip(cells, numbers, strict=True)
        for key, message in imported.problems[number]
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return imported.modules


def prepare(
    sweep: Sweep,
    path: Path,
    cells: Sequence[Cell],
    first: Loaded,
    *,
    modules: Modules,
    parallel: int | None,
    snapshot: bool,
) -> ArrayJob:
    """The job of a sweep in the folder `path`. Writes nothing; ConfigError where SLURM would refuse it."""
    refuse_unwritable(path)
    working_folder = Path(sweep.working_folder)
    for warning in (tracking_warning(first.config, working_folder), cores_hint(first.config.slurm)):
        if warning:
            warn(warning)
    code = None
    if snapshot:
        code = plan_snapshot(path, find_code(working_folder, runs=path.parent, modules=modules))
        if code.code.left_out:
            warn(f"not in the copy of the code: {', '.join(code.code.left_out)}")
    script = slurm.make_script(
        first.config.model_copy(update={"name": sweep.name}),
        log_folder=path / "slurm",
        working_folder=working_folder,
        arguments=["--sweep", str(path)],
        code=code.places if code else None,
        array=[cell.index for cell in cells],
        parallel=parallel,
    )
    try:
        estimate = slurm.test_only(script, first.config.slurm)
    except slurm.Refused as error:
        raise refusal(first, str(error)) from error
    return ArrayJob(cells, script, code, first, estimate)


def first_of(folder: SweepFolder, cells: Sequence[Cell]) -> Loaded:
    """The configuration of the first of these cells."""
    return load_config([folder.run_of(cells[0]).config_path])


def hand_over(folder: SweepFolder, job: ArrayJob) -> tuple[str, Sending]:
    """Give the job to SLURM; its number, and what is to be noted of it.

    slurm.Unanswered: nobody knows whether SLURM has it, and `sending.settle` looks again. Every other
    DistTrainerError says that SLURM does not have it.
    """
    check_store(folder.run_of(job.cells[0]), job.first)
    path = next_script(folder.path)
    if job.snapshot is not None:
        write_snapshot(job.snapshot)
    code = job.snapshot.name if job.snapshot else None
    numbers, nodes = [cell.index for cell in job.cells], job.first.config.slurm.nodes
    sent = Sending(numbers, time.time(), nodes, code, f"slurm/{path.name}")
    sending.begin(folder, sent)
    return _send(folder, job, path, sent), sent


def _send(folder: SweepFolder, job: ArrayJob, path: Path, sent: Sending) -> str:
    try:
        return slurm.send(job.script, path, job.first.config.slurm)
    except (slurm.Refused, SchedulerUnavailable) as error:
        sending.drop(folder)
        if job.snapshot is not None:
            remove_snapshot(job.snapshot)
        if isinstance(error, SchedulerUnavailable):
            raise
        raise refusal(job.first, str(error)) from error
    except (slurm.Unanswered, KeyboardInterrupt):
        with suppress(SchedulerUnavailable):
            if number := sending.find(folder, sent):
                return number
        raise


def note_sent(folder: SweepFolder, job: ArrayJob, sent: tuple[str, Sending], *, as_json: bool) -> int:
    """Note the job's elements in the cells' run folders, and tell what to do next; the command's exit code."""
    number = sent[0]
    sending.note(folder, sent[1], number)
    name, where = folder.path.name, in_folder(folder.path.parent)
    if as_json:
        content = {
            "sweep": name,
            "folder": str(folder.path),
            "state": "submitted",
            "job": number,
            "estimated_start": job.estimate or None,
            "cells": [
                {"index": cell.index, "run": cell.run, "values": cell.values, "job": f"{number}_{cell.index}"}
                for cell in job.cells
            ],
        }
        print(json.dumps(content, indent=2, default=str))
        return FINISHED
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{name}: {len(job.cells)} cells submitted as job {number}", markup=False)
    if job.snapshot is not None:
        console.print(f"  code        {job.snapshot.path}", markup=False)
    console.print(f"  its cells   dist-trainer sweep status {name}{where}", markup=False)
    console.print(f"  one's words dist-trainer logs {job.cells[0].run} -f{where}", markup=False)
    console.print(f"  stop all    dist-trainer cancel {name}{where}", markup=False)
    return FINISHED
