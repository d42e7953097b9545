"""How each cell of a sweep stands: its state, how far it is, and its value of the metric that counts."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dist_trainer.config.load import read_config
from dist_trainer.config.schema import BestConfig
from dist_trainer.jobs.standing import Standing, standing
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.scheduler import JobRecord, SchedulerUnavailable
from dist_trainer.slurm.submissions import last_job
from dist_trainer.sweep_folder import Cell, SweepFolder
from dist_trainer.tracking.journal import metric_history


@dataclass(frozen=True)
class Row:
    """One cell; `value` is None where the metric was not measured yet."""

    cell: Cell
    run: RunFolder
    standing: Standing
    value: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.standing.state == "finished"

    @property
    def is_missing(self) -> bool:
        """Whether it has to be run again, and nobody is about to."""
        return not self.is_finished and not self.standing.is_live

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
    runs = {cell.index: folder.run_of(cell) for cell in folder.sweep.cells}
    records = _records(list(runs.values()))
    return [_row(cell, runs[cell.index], metric, records) for cell in folder.sweep.cells]


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


def _row(cell: Cell, run: RunFolder, metric: BestConfig, records: dict[str, JobRecord]) -> Row:
    submission = last_job(run)
    record = records.get(submission.job) if submission else None
    return Row(cell, run, standing(run, record), measured(run, metric))


def _records(runs: Sequence[RunFolder]) -> dict[str, JobRecord]:
    """What SLURM says of the runs' last jobs; nothing where it does not answer."""
    jobs = [submission.job for run in runs if (submission := last_job(run))]
    if not jobs:
        return {}
    with suppress(SchedulerUnavailable):
        queue = scheduler.my_jobs()
        return {job: record for job in jobs if (record := queue.get(job) or scheduler.find(job))}
    return {}
