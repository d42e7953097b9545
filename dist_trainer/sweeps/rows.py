"""How each cell of a sweep stands: its state, how far it is, and its value of the metric that counts."""

import math
from dataclasses import dataclass, replace
from typing import Any

from dist_trainer.config.load import read_config
from dist_trainer.config.schema import BestConfig
from dist_trainer.jobs.listing import Queue, stand_in_queue
from dist_trainer.jobs.standing import Standing
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import Submission, last_job
from dist_trainer.sweep_folder import Cell, SweepFolder
from dist_trainer.tracking.journal import metric_history


@dataclass(frozen=True)
class Row:
    """One cell; `value` is None where the metric was not measured yet."""

    cell: Cell
    run: RunFolder
    standing: Standing
    value: float | None = None
    unknown: str = ""  # why nobody knows whether SLURM still has its job; "" where that is known

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.standing.state == "finished"

    @property
    def is_missing(self) -> bool:
        """Whether it has to be run again, and nobody is about to."""
        return not (self.is_finished or self.standing.is_live or self.unknown)

    def as_json(self) -> dict[str, Any]:
        """What a script is told."""
        state = self.standing
        return {
            "index": self.cell.index,
            "run": self.cell.run,
            "values": self.cell.values,
            "state": state.state,
            "note": state.note or None,
            "job": state.job,
            "step": state.step,
            "total_steps": state.total_steps,
            "value": self.value if self.value is None or math.isfinite(self.value) else str(self.value),
        }


def wanted_metric(folder: SweepFolder) -> BestConfig:
    """What the cells are compared by unless something else is asked for: checkpoint.keep_best, else val/loss."""
    return read_config(folder.run_of(folder.cell(0)).config_path).checkpoint.keep_best or BestConfig()


def rows(folder: SweepFolder, metric: BestConfig) -> list[Row]:
    """Every cell, in the order of the grid."""
    runs = [folder.run_of(cell) for cell in folder.sweep.cells]
    queue = Queue()
    queue.look_up(job for run in runs if (job := _open_job(run)))
    return [_row(cell, run, metric, queue) for cell, run in zip(folder.sweep.cells, runs, strict=True)]


def measured(run: RunFolder, metric: BestConfig) -> float | None:
    """The run's value of the metric: its best one where the best checkpoint is kept by it, else its last one."""
    values = list(metric_history(run.journal_path(0), metric.metric).values())
    if not values:
        return None
    numbers = [value for value in values if not math.isnan(value)]
    if keeps_best(run, metric) and numbers:
        return min(numbers) if metric.mode == "min" else max(numbers)
    return values[-1]


def keeps_best(run: RunFolder, metric: BestConfig) -> bool:
    """Whether the run keeps its best checkpoint by just this metric."""
    return read_config(run.config_path).checkpoint.keep_best == metric


def _row(cell: Cell, run: RunFolder, metric: BestConfig, queue: Queue) -> Row:
    found, job, unknown = stand_in_queue(run, queue), _open_job(run), ""
    if job is not None and queue.is_unsure(job.job):
        unknown = queue.problem
        found = found if found.is_live else replace(found, state="unknown", note="")
    return Row(cell, run, found, measured(run, metric), unknown)


def _open_job(run: RunFolder) -> Submission | None:
    """The run's last job, unless the run has said how it ended since it was submitted."""
    job, status = last_job(run), run.read_status()
    has_ended = status.state not in ("new", "running") and not status.run_again
    if job is None or status.state == "finished" or (has_ended and status.time > job.time):
        return None
    return job
