"""Gives the cells of a sweep to SLURM: one array job whose element i trains cell i.

Script, log and code are in the sweep's folder; each cell's run folder links to what its element prints.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dist_trainer.config.schema import Config
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.errors import FINISHED
from dist_trainer.launchers import slurm
from dist_trainer.launchers.code_files import find_code
from dist_trainer.launchers.code_snapshot import Snapshot, plan_snapshot, remove_snapshot, write_snapshot
from dist_trainer.launchers.submissions import Submission, add_job
from dist_trainer.launchers.sweep_screen import in_folder
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder


def preview(sweep: Sweep, cells: Sequence[Cell], *, runs: Path, parallel: int | None) -> str:
    """The script that `submit` would send. Refused where SLURM would not take it."""
    folder = Path(runs, sweep.name).absolute()
    snapshot = plan_snapshot(folder, find_code(Path(sweep.working_folder), runs=folder.parent))
    text = _script(sweep, folder, cells, snapshot, parallel)
    slurm.test_only(text, _config(sweep).slurm)
    return text


def submit(folder: SweepFolder, cells: Sequence[Cell], *, parallel: int | None, as_json: bool) -> int:
    """Send the array job, and note its elements in the cells' run folders. Refused where SLURM does not take it."""
    sweep = folder.sweep
    config = _config(sweep)
    snapshot = plan_snapshot(folder.path, find_code(Path(sweep.working_folder), runs=folder.path.parent))
    text = _script(sweep, folder.path, cells, snapshot, parallel)
    (folder.path / "slurm").mkdir(mode=0o700, exist_ok=True)
    slurm.test_only(text, config.slurm)
    write_snapshot(snapshot)
    path = _next_script(folder.path)
    try:
        job = slurm.send(text, path, config.slurm)
    except slurm.Refused:
        remove_snapshot(snapshot)
        raise
    for cell in cells:
        _note(folder, cell, job, config.slurm.nodes, snapshot, path)
    _say(folder, cells, job, as_json=as_json)
    return FINISHED


def _config(sweep: Sweep) -> Config:
    """The first cell's: what concerns SLURM is the same in all of them."""
    tree, _ = read_yaml(sweep.cells[0].config, sweep.cells[0].run)
    assert tree is not None, "we wrote it"
    return Config.model_validate(tree.plain()).model_copy(update={"name": sweep.name})


def _script(
    sweep: Sweep, folder: Path, cells: Sequence[Cell], snapshot: Snapshot, parallel: int | None
) -> str:
    return slurm.make_script(
        _config(sweep),
        log_folder=folder / "slurm",
        working_folder=Path(sweep.working_folder),
        arguments=["--sweep", str(folder)],
        code=snapshot.places,
        array=[cell.index for cell in cells],
        parallel=parallel,
    )


def _next_script(folder: Path) -> Path:
    numbers = [int(path.stem) for path in (folder / "slurm").glob("*.sbatch") if path.stem.isdigit()]
    return folder / "slurm" / f"{max(numbers, default=0) + 1:04d}.sbatch"


def _note(folder: SweepFolder, cell: Cell, job: str, nodes: int, snapshot: Snapshot, script: Path) -> None:
    run, element = folder.run_of(cell), f"{job}_{cell.index}"
    up = f"../{folder.path.name}"
    add_job(
        run,
        Submission(element, nodes=nodes, code=f"{up}/{snapshot.name}", script=f"{up}/slurm/{script.name}"),
    )
    for node in range(nodes):
        name = f"{element}_{node}_log.out"
        with suppress(FileExistsError):
            (run.path / "slurm" / name).symlink_to(f"../{up}/slurm/{name}")


def _say(folder: SweepFolder, cells: Sequence[Cell], job: str, *, as_json: bool) -> None:
    name, where = folder.path.name, in_folder(folder.path.parent)
    if as_json:
        content = {
            "sweep": name,
            "folder": str(folder.path),
            "job": job,
            "cells": [{"index": cell.index, "run": cell.run, "values": cell.values} for cell in cells],
        }
        print(json.dumps(content, indent=2, default=str))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"job {job}: {len(cells)} cells of sweep {name}", markup=False)
    console.print(f"how they stand  dist-trainer sweep status {name}{where}", markup=False)
    console.print(f"stop one        dist-trainer cancel {cells[0].run}{where}", markup=False)
