"""A training on each number of nodes: what its steps, epochs, saves and failures would cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from dist_trainer.config.schema import CheckpointConfig, Config
from dist_trainer.planning.all_reduce import Cluster, all_reduce_s, broadcast_s
from dist_trainer.planning.assumptions import Assumptions
from dist_trainer.planning.failures import best_interval_s, lost_share, mean_time_between_failures_s
from dist_trainer.planning.measurement import Measurement
from dist_trainer.planning.timeline import Bucket, Step, fill_buckets, step_of

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Question:
    """How many nodes, with how many workers each, and what of the batch stays as it is when they grow."""

    node_counts: Sequence[int]
    workers: int
    keeps_global_batch: bool = False


@dataclass(frozen=True)
class Saves:
    """What failures and saves cost on a number of nodes, in seconds and shares of 1."""

    mtbf_s: float | None  # between two failures; None: there are none
    best_every_s: float | None  # between two saves; None: the fewer the better
    lost_at_best: float  # to saves, work done again and restarts
    every_s: float  # between two saves, as configured
    lost_as_configured: float


@dataclass(frozen=True)
class Forecast:
    """What is predicted for a number of nodes. Shares are of 1."""

    step_s: float
    compute_s: float  # of which a rank alone would take
    communication_s: float  # all-reduces and broadcasts, hidden or not
    exposed_s: float  # of these what training waits for
    efficiency: float  # samples a rank and second, to those of a rank alone with the rows that were measured
    samples_per_s: float
    steps_per_epoch: int
    epoch_s: float  # without evaluations
    saves: Saves
    useful: float  # efficiency, of the time that is not lost at the best interval


@dataclass(frozen=True)
class Row:
    """One number of nodes; without a forecast `note` says why there is none."""

    nodes: int
    ranks: int
    rank_rows: int  # of the slowest rank
    global_batch: int
    forecast: Forecast | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """All rows, and what they rest on."""

    run: str
    rows: Sequence[Row]
    question: Question
    assumptions: Assumptions
    measured: Measurement
    buckets: Sequence[Bucket]

    @property
    def forecasts(self) -> list[tuple[Row, Forecast]]:
        """The rows that have one."""
        return [(row, row.forecast) for row in self.rows if row.forecast is not None]

    def as_json(self) -> dict[str, Any]:
        """For programs; the single gradients are left out."""
        found = asdict(self)
        gradients = found["measured"].pop("gradients")
        found["measured"]["gradient_bytes"] = sum(each["size_bytes"] for each in gradients)
        return found


def make_plan(config: Config, measured: Measurement, question: Question, assumptions: Assumptions) -> Plan:
    """Predict each number of nodes from one rank's measurement."""
    # with a cap that is given, as it always is here, DDP's first bucket is no smaller than the others
    buckets = fill_buckets(measured.gradients, cap_bytes=config.ddp.bucket_cap_mb * _MIB)
    plan = Plan(config.name, [], question, assumptions, measured, buckets)
    return replace(plan, rows=[_row(plan, config, nodes) for nodes in question.node_counts])


def _row(plan: Plan, config: Config, nodes: int) -> Row:
    ranks, rank_rows = nodes * plan.question.workers, plan.measured.rank_rows
    global_batch = rank_rows * ranks
    if plan.question.keeps_global_batch:
        global_batch = config.data.global_batch_size
        rank_rows = -(-global_batch // ranks)
    row = Row(nodes, ranks, rank_rows, global_batch)
    if ranks > global_batch:
        return replace(row, note=f"{ranks:,} ranks have no row each in a step of {global_batch:,}")
    return replace(row, forecast=_forecast(plan, config, row))


def predict_step(measured: Measurement, cluster: Cluster, rank_rows: int, buckets: Sequence[Bucket]) -> Step:
    """A step of a cluster whose slowest rank has so many rows."""
    broadcasts_s = broadcast_s(measured.buffer_bytes, cluster)
    cores = cluster.network.within.shared_cores
    compute = measured.compute(rank_rows, ranks=cluster.workers, cores=cores)
    return step_of(compute, buckets, partial(all_reduce_s, cluster=cluster), broadcasts_s)


def _forecast(plan: Plan, config: Config, row: Row) -> Forecast:
    measured = plan.measured
    cluster = Cluster(row.nodes, plan.question.workers, plan.assumptions.network)
    step = predict_step(measured, cluster, row.rank_rows, plan.buckets)
    samples_per_s = row.global_batch / step.total_s
    alone_per_s = measured.rank_rows / measured.compute(measured.rank_rows).total_s
    efficiency = samples_per_s / row.ranks / alone_per_s
    steps = _steps_per_epoch(measured.dataset_rows, row.global_batch, config.data.drop_last)
    saves = _saves(plan, config.checkpoint, row.nodes, step.total_s)
    return Forecast(
        step_s=step.total_s,
        compute_s=step.total_s - step.exposed_s,
        communication_s=step.communication_s,
        exposed_s=step.exposed_s,
        efficiency=efficiency,
        samples_per_s=samples_per_s,
        steps_per_epoch=steps,
        epoch_s=steps * step.total_s,
        saves=saves,
        useful=efficiency * (1 - saves.lost_at_best),
    )


def _saves(plan: Plan, config: CheckpointConfig, nodes: int, step_s: float) -> Saves:
    save, assumptions = plan.measured.save, plan.assumptions
    mtbf_s = mean_time_between_failures_s(assumptions.failures_per_node_year, nodes)
    soonest_s = max(save.total_s, step_s)  # one is written at a time, between steps
    best_s = max(soonest_s, best_interval_s(save.stall_s, mtbf_s))
    every_s = max(soonest_s, saves_every_s(config, step_s))
    restart_s = assumptions.restart_s + save.total_s  # the one that is being written is of no use yet
    lost = partial(lost_share, save_s=save.stall_s, restart_s=restart_s, mtbf_s=mtbf_s)
    return Saves(
        mtbf_s=None if math.isinf(mtbf_s) else mtbf_s,
        best_every_s=None if math.isinf(best_s) else best_s,
        lost_at_best=lost(best_s),
        every_s=every_s,
        lost_as_configured=lost(every_s),
    )


def _steps_per_epoch(dataset_rows: int, global_batch: int, drop_last: bool) -> int:
    return max(1, dataset_rows // global_batch if drop_last else -(-dataset_rows // global_batch))


def saves_every_s(config: CheckpointConfig, step_s: float) -> float:
    """Seconds between two saves as configured: by steps or by minutes, whichever comes first."""
    by_time = 60 * min(config.every_minutes or config.max_staleness_minutes, config.max_staleness_minutes)
    return min(config.every_steps * step_s, by_time)
