"""The `sweep` commands below the command line: begin one, see how it stands, run what is missing, name the best."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dist_trainer.config.load import Loaded
from dist_trainer.config.schema import BestConfig
from dist_trainer.errors import FINISHED, DistTrainerError, UsageError
from dist_trainer.launchers.results import in_folder
from dist_trainer.slurm import scheduler
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder
from dist_trainer.sweeps.local import LocalSweep
from dist_trainer.sweeps.plan import Planned, frozen, refuse_existing, unmake
from dist_trainer.sweeps.rows import Row, rows, wanted_metric
from dist_trainer.sweeps.screen import SweepScreen, print_cells, print_rows

if TYPE_CHECKING:
    from dist_trainer.sweeps.submit import ArrayJob

RUNS = Path("runs")


@dataclass(frozen=True)
class Way:
    """Where and how cells are to run, and what is shown of it."""

    local: bool = True  # here, or else in SLURM
    parallel: int | None = None  # at a time; None: one here, all of them in SLURM
    only: int | None = None  # this cell alone
    dry_run: bool = False
    snapshot: bool = True  # of the code, for a job
    runs: Path = RUNS
    as_json: bool = False

    @property
    def console(self) -> Console:
        """Where the words go; nowhere where a script wants one object."""
        return Console(quiet=self.as_json, highlight=False)


def is_local(wanted: bool, *, as_json: bool) -> bool:
    """Whether cells run on this machine: where that is wanted, or there is no SLURM."""
    if wanted or scheduler.is_there():
        return wanted
    if not as_json:
        print("no SLURM answers here: the cells run on this machine")
    return True


def check_cell(loaded: Loaded, *, local: bool) -> Sequence[tuple[str, str]]:
    """What is wrong with a cell where it is to run: (dotted key, message) pairs."""
    if not local:
        from dist_trainer.sweeps.submit import check_for_slurm

        return check_for_slurm(loaded)
    workers, size = loaded.config.launch.workers_per_node, loaded.config.data.global_batch_size
    if not isinstance(workers, int) or workers <= size:
        return []
    return [("data.global_batch_size", f"must be at least the number of ranks, {workers}, got {size}")]


def begin(planned: Planned, way: Way) -> int:
    """Freeze the sweep and run it; the command's exit code."""
    sweep = planned.sweep
    refuse_existing(sweep, way.runs)
    cells = _chosen(sweep.cells, way, sweep.name)
    job = None
    if not way.local:
        from dist_trainer.sweeps.submit import prepare

        path = Path(way.runs, sweep.name).absolute()
        modules, parallel = planned.modules, way.parallel
        job = prepare(
            sweep, path, cells, planned.first, modules=modules, parallel=parallel, snapshot=way.snapshot
        )
    if way.dry_run:
        return _preview(sweep, cells, way, job)
    with frozen(sweep, way.runs) as folder:
        if job is not None:
            return _send_or_unmake(folder, job, way)
    way.console.print(f"sweep {sweep.name}: {len(sweep.cells)} cells in {folder.path}", soft_wrap=True)
    return _run_here(folder, cells, way)


def _send_or_unmake(folder: SweepFolder, job: "ArrayJob", way: Way) -> int:
    from dist_trainer.slurm.script import Unanswered
    from dist_trainer.sweeps.submit import hand_over, note_sent

    try:
        sent = hand_over(folder, job)
    except Unanswered:
        raise
    except DistTrainerError:  # SLURM does not have it
        unmake(folder)
        raise
    return note_sent(folder, job, sent, as_json=way.as_json)


def resume(folder: SweepFolder, way: Way) -> int:
    """Run the cells that are not finished and that nobody is about to run; the command's exit code."""
    from dist_trainer.sweeps.sending import settle

    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        settle(folder)
        if way.local:
            stack.close()  # a cell's own lock is enough where it runs here
        return _resume(folder, way)


def _resume(folder: SweepFolder, way: Way) -> int:
    sweep, console = folder.sweep, way.console
    metric = wanted_metric(folder)
    found = rows(folder, metric)
    _refuse_unknown(found, way, sweep.name)
    missing = [row.cell for row in found if row.is_missing]
    live = [row for row in found if row.standing.is_live]
    cells = _chosen(missing, way, sweep.name)
    if live:
        console.print(f"{len(live)} cells are being run already; they are left alone", soft_wrap=True)
    if not cells:
        what = "misses nothing" if live else "is finished"
        console.print(f"sweep {sweep.name} {what}: {_next(folder, found)}", soft_wrap=True)
        if way.as_json:
            _print_json(folder, found, FINISHED, metric)
        return FINISHED
    if way.local:
        return _preview(sweep, cells, way, None) if way.dry_run else _run_here(folder, cells, way)
    from dist_trainer.sweeps.submit import first_of, hand_over, modules_of, note_sent, prepare

    modules, parallel = modules_of(folder, cells), way.parallel
    first = first_of(folder, cells)
    job = prepare(sweep, folder.path, cells, first, modules=modules, parallel=parallel, snapshot=way.snapshot)
    if way.dry_run:
        return _preview(sweep, cells, way, job)
    return note_sent(folder, job, hand_over(folder, job), as_json=way.as_json)


def _refuse_unknown(found: Sequence[Row], way: Way, name: str) -> None:
    """A cell that may wait or run is not given out once more."""
    unknown = [row for row in found if row.unknown and way.only in (None, row.cell.index)]
    if unknown:
        cells = ", ".join(str(row.cell.index) for row in unknown[:10]) + (", ..." if unknown[10:] else "")
        raise scheduler.SchedulerUnavailable(
            f"sweep {name}: SLURM may still have cells {cells}, and does not say: {unknown[0].unknown}; "
            "resume when it answers"
        )


def status(folder: SweepFolder, *, as_json: bool) -> int:
    """Show every cell."""
    metric = wanted_metric(folder)
    found = rows(folder, metric)
    if as_json:
        _print_json(folder, found, FINISHED, metric)
        return FINISHED
    console = Console(highlight=False)
    print_rows(folder.sweep, found, metric, console)
    console.print(_next(folder, found), markup=False, soft_wrap=True)
    return FINISHED


def _run_here(folder: SweepFolder, cells: Sequence[Cell], way: Way) -> int:
    metric, console = wanted_metric(folder), way.console
    screen = SweepScreen(folder.sweep, metric, console)
    code = LocalSweep(folder, screen, parallel=way.parallel or 1).run(cells)
    found = rows(folder, metric)
    if way.as_json:
        _print_json(folder, found, code, metric)
        return code
    print_rows(folder.sweep, found, metric, console)
    console.print(_next(folder, found), markup=False, soft_wrap=True)
    return code


def _chosen(cells: Sequence[Cell], way: Way, name: str) -> Sequence[Cell]:
    if way.only is None:
        return cells
    chosen = [cell for cell in cells if cell.index == way.only]
    if not chosen:
        there = ", ".join(str(cell.index) for cell in cells[:20]) or "none"
        raise UsageError(f"--only {way.only}: sweep {name} has no such cell to run; there is {there}")
    return chosen


def _preview(sweep: Sweep, cells: Sequence[Cell], way: Way, job: "ArrayJob | None") -> int:
    if way.as_json:
        shown = [{"index": cell.index, "run": cell.run, "values": cell.values} for cell in cells]
        print(
            json.dumps(
                {"sweep": sweep.name, "dry_run": True, "cells": shown, "script": job and job.script}, indent=2
            )
        )
        return FINISHED
    print_cells(sweep, cells, way.console)
    if job is not None:
        print(f"\n{job.script}", end="")
    where = "this machine" if way.local else "SLURM"
    way.console.print(f"{len(cells)} cells for {where}; nothing was made or started", soft_wrap=True)
    return FINISHED


def _next(folder: SweepFolder, found: Sequence[Row]) -> str:
    """What to do next, in words and as a command."""
    what, verb = "how it stands", "status"
    if any(row.is_missing for row in found) and not any(row.unknown for row in found):
        what, verb = "to run what is missing", "resume"
    elif all(row.is_finished for row in found):
        what, verb = "the best of them", "best"
    return f"{what}: dist-trainer sweep {verb} {folder.path.name}{in_folder(folder.path.parent)}"


def _print_json(folder: SweepFolder, found: Sequence[Row], code: int, metric: BestConfig) -> None:
    content: dict[str, Any] = {
        "sweep": folder.path.name,
        "folder": str(folder.path),
        "state": _state(found),
        "exit_code": code,
        "metric": metric.metric,
        "mode": metric.mode,
        "cells": [row.as_json() for row in found],
    }
    print(json.dumps(content, indent=2, default=str))


def _state(found: Sequence[Row]) -> str:
    if any(row.standing.is_live for row in found):
        return "running"
    if all(row.is_finished for row in found):
        return "finished"
    if any(row.unknown for row in found):
        return "unknown"
    return "failed" if any(row.standing.state in ("failed", "do-not-requeue") for row in found) else "stopped"
