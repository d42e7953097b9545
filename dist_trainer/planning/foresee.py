"""From a configuration to its plan: one rank is measured here, and the rest is worked out."""

import os
from collections.abc import Sequence
from pathlib import Path

from dist_trainer.config.load import Loaded
from dist_trainer.config.schema import Config
from dist_trainer.launchers.workers import count_workers, gpus_by_driver
from dist_trainer.planning.assumptions import Given, assume
from dist_trainer.planning.plan import Plan, Question, make_plan
from dist_trainer.planning.trial import measure, sizes_to_measure


def foresee(
    loaded: Loaded,
    node_counts: Sequence[int],
    given: Given,
    *,
    workers: int | None,
    keeps_global_batch: bool,
    steps: int,
    runs: Path,
) -> Plan:
    """The plan for each number of nodes. Raises as `measure` does."""
    count = workers or count_workers(loaded.config, gpus_by_driver())
    sizes = sizes_to_measure(rank_rows_of(loaded.config, count), is_any_asked=keeps_global_batch)
    measured = measure(loaded, sizes, workers=count, runs=runs, steps=steps)
    cores = len(os.sched_getaffinity(0))
    assumptions = assume(given, measured.device, workers=count, cores=cores)
    question = Question(node_counts, count, keeps_global_batch)
    return make_plan(loaded.config, measured, question, assumptions)


def rank_rows_of(config: Config, workers: int) -> int:
    """Rows of one rank in a step where the configuration is trained as it is, on its own number of nodes."""
    return -(-config.data.global_batch_size // (config.slurm.nodes * workers))
