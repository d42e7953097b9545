"""Which cell of a sweep is the best one by a metric, and which of its checkpoints to use next."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.checkpoint.store import Checkpoint
from dist_trainer.config.load import read_config
from dist_trainer.config.near import did_you_mean
from dist_trainer.config.schema import BestConfig
from dist_trainer.errors import FINISHED, StorageError, UsageError
from dist_trainer.launchers.results import in_folder
from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import SweepFolder
from dist_trainer.sweeps.rows import Row, keeps_best, rows, wanted_metric
from dist_trainer.sweeps.screen import cell_table, show_number, value_columns
from dist_trainer.tracking.journal import history, metric_history


@dataclass(frozen=True)
class Candidate:
    """A cell with the checkpoint that its value belongs to."""

    row: Row
    which: Literal["best", "last"]  # what the commands call the checkpoint
    checkpoint: Checkpoint | None
    folder: str  # where the run's checkpoints are
    value: float | None
    problem: str = ""  # why there is no checkpoint

    def order(self, mode: str) -> tuple[bool, bool, float, int]:
        """Best first, of equal ones in the order of the grid; then those that are no numbers, or not there."""
        value = math.nan if self.value is None else self.value
        is_number = not math.isnan(value)
        sign = 1.0 if mode == "min" else -1.0
        return (self.value is None, not is_number, sign * value if is_number else 0.0, self.row.cell.index)


def metric_by(folder: SweepFolder, name: str | None, mode: Literal["min", "max"] | None) -> BestConfig:
    """What to compare by. UsageError where it is not known whether more of it is better."""
    usual = wanted_metric(folder)
    name = name or usual.metric
    if mode is None and name != usual.metric and not name.endswith("loss"):
        raise UsageError(f"--metric {name}: give --mode max where more of it is better, else --mode min")
    return BestConfig(metric=name, mode=mode or (usual.mode if name == usual.metric else "min"))


def best(folder: SweepFolder, metric: BestConfig, *, as_json: bool) -> int:
    """Show the cells, the best first, and how to go on with it. UsageError where none has the metric."""
    found = rows(folder, metric)
    candidates = sorted((_candidate(row, metric) for row in found), key=lambda each: each.order(metric.mode))
    if candidates[0].value is None:
        raise UsageError(_nothing_measured(found, metric.metric))
    if as_json:
        _print_json(folder, candidates, metric)
    else:
        _print(folder, candidates, metric, Console(highlight=False))
    return FINISHED


def _candidate(row: Row, metric: BestConfig) -> Candidate:
    config = read_config(row.run.config_path).checkpoint
    where, there, problem = row.run.checkpoint_url(config.folder, shown=True), [], ""
    try:
        there = open_store(row.run, config).list()
    except StorageError as error:
        problem = str(error)
    if keeps_best(row.run, metric) and any(metric.metric in each.metrics for each in there):
        chosen = choose(there, "best", config)
        return Candidate(row, "best", chosen, where, float(chosen.metrics[metric.metric]))
    last = there[0] if there else None
    return Candidate(row, "last", last, where, _value_at(row.run, metric.metric, last), problem)


def _value_at(run: RunFolder, metric: str, checkpoint: Checkpoint | None) -> float | None:
    """The last value up to the checkpoint's step: what its weights are known to be worth."""
    values = metric_history(run.journal_path(0), metric)
    if checkpoint is not None:
        values = {step: value for step, value in values.items() if step <= checkpoint.step} or values
    return values[max(values)] if values else None


def _nothing_measured(found: Sequence[Row], metric: str) -> str:
    there = sorted({name for row in found for name in history(row.run.journal_path(0))})
    shown = [name for name in there if name.startswith(("val/", "test/"))] or there
    known = f"; there is {', '.join(shown)}" if shown else "; none has measured anything yet"
    return f"no cell has measured {metric}{did_you_mean(metric, shown) or known}"


def _evaluate(candidate: Candidate, folder: SweepFolder) -> str:
    command = f"dist-trainer evaluate {candidate.row.cell.run} --checkpoint {candidate.which}"
    return f"{command}{in_folder(folder.path.parent)}"


def _print(
    folder: SweepFolder, candidates: Sequence[Candidate], metric: BestConfig, console: Console
) -> None:
    sweep = folder.sweep
    table = cell_table(sweep, [metric.metric, "checkpoint", "state"])
    for each in candidates:
        kept = "-" if each.checkpoint is None else f"{each.which}, step {each.checkpoint.step}"
        state = each.row.standing.state
        table.add_row(*value_columns(sweep, each.row.cell), show_number(each.value), kept, state)
    console.print(table)
    first = candidates[0]
    value = show_number(first.value)
    unfinished = sum(not each.row.is_finished for each in candidates)
    lines = [f"best        {first.row.cell.run} ({first.row.cell.shown}): {metric.metric} {value}"]
    if first.checkpoint is not None:
        lines.append(f"checkpoint  {first.folder}/{first.checkpoint.name}")
        lines.append(f"evaluate    {_evaluate(first, folder)}")
    lines += [f"cell {each.row.cell.index}: {each.problem}" for each in candidates if each.problem]
    if unfinished:
        lines.append(f"{unfinished} of {len(candidates)} cells are not finished")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _print_json(folder: SweepFolder, candidates: Sequence[Candidate], metric: BestConfig) -> None:
    cells: list[dict[str, Any]] = []
    for each in candidates:
        value, kept = each.value, each.checkpoint
        cells.append(
            {
                **each.row.as_json(),
                "value": value if value is None or math.isfinite(value) else str(value),
                "checkpoint": f"{each.folder}/{kept.name}" if kept else None,
                "checkpoint_step": kept.step if kept else None,
                "evaluate": _evaluate(each, folder) if kept else None,
            }
        )
    content = {"sweep": folder.path.name, "metric": metric.metric, "mode": metric.mode, "cells": cells}
    print(json.dumps(content, indent=2, default=str))
