"""What `dist-trainer plan` predicts, held against real gloo ranks of this machine whose compute is a sleep.

One rank alone is measured as the command does it; its sleeps are known, so of the rest only the core's time is taken.
Gloo's all-reduce is measured on two ranks, of a few numbers and of a bucket's. From these the plan's own simulation
predicts the steps of 2, 4 and 8 ranks, which are then trained: with a backward that hides most all-reduces, and with
one that hides few. Of all times the lower quartile counts: what else runs on the machine only ever adds.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from os import sched_getaffinity
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.trained import CONFIG, run, ticks, training
from dist_trainer.adapters.distributed import join
from dist_trainer.config.load import load_config
from dist_trainer.planning.all_reduce import Cluster, Link, Network
from dist_trainer.planning.measurement import Measurement, Spent
from dist_trainer.planning.plan import predict_step
from dist_trainer.planning.timeline import fill_buckets
from dist_trainer.planning.trial import measure as measure_one_rank
from tests.ranks import run_ranks

RANKS = (2, 4, 8)
RANK_ROWS = 4
STEPS, WARM_UP_STEPS = 60, 10
LAYERS, LAYER_MB, BUCKET_MB = 8, 1.0, 2.0
SMALL_NUMBERS, TIMES = 64, 80
QUANTITIES = [
    Quantity("step, measured", "ms", 1000),
    Quantity("step, predicted", "ms", 1000),
    Quantity("waits for gradients, predicted", "ms", 1000),
    Quantity("error of the prediction", "%", 100),
]


@dataclass(frozen=True)
class Sleep:
    """How long a layer sleeps each way."""

    forward_ms: float
    backward_ms: float

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of benchmarks.trained.CONFIG."""
        sleeps = f"forward_ms: {self.forward_ms}, backward_ms: {self.backward_ms}"
        weights = f"layers: {LAYERS}, layer_mb: {LAYER_MB}, outputs: 4"
        model = f"model={{target: benchmarks.sleeping.Sleeping, {weights}, {sleeps}}}"
        return (model, f"ddp.bucket_cap_mb={BUCKET_MB}", "checkpoint.every_steps=100000")


SLEEPS = {"": Sleep(3.0, 9.0), ", a quarter of the compute": Sleep(0.75, 2.25)}


@dataclass(frozen=True)
class _Times:
    """Of an all-reduce on two ranks, in seconds."""

    small_s: float
    bucket_s: float


def measure(rounds: int) -> list[Row]:
    """In turns: 2, 4 and 8 ranks, each with what was predicted for it from the all-reduces of that moment."""
    variants = {
        f"{ranks} ranks{name}": _variant(sleep, ranks) for name, sleep in SLEEPS.items() for ranks in RANKS
    }
    return rows("plan", in_turns(variants, rounds), QUANTITIES)


def _variant(sleep: Sleep, ranks: int) -> Callable[[], Sample]:
    def sample() -> Sample:
        alone, cluster = _alone(sleep), Cluster(1, ranks, _loopback())
        buckets = fill_buckets(alone.gradients, cap_bytes=BUCKET_MB * 2**20)
        predicted = predict_step(alone, cluster, RANK_ROWS, buckets)
        measured_s = _step_s(sleep, ranks)
        return {
            "step, measured": measured_s,
            "step, predicted": predicted.total_s,
            "waits for gradients, predicted": predicted.exposed_s,
            "error of the prediction": predicted.total_s / measured_s - 1,
        }

    return sample


@cache
def _alone(sleep: Sleep) -> Measurement:
    """The plan's own measurement, of the same training without the hook that tells the time."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder, "run.yaml")
        path.write_text(CONFIG)
        loaded = load_config([path], [*sleep.overrides, "hooks=[]"])
        measured = measure_one_rank(loaded, [RANK_ROWS], workers=max(RANKS), runs=Path(folder))
    (phases,) = measured.phases
    undisturbed = replace(
        phases,
        between=_undisturbed(phases.between, 0.0),
        forward=_undisturbed(phases.forward, LAYERS * sleep.forward_ms / 1000),
        backward=_undisturbed(phases.backward, LAYERS * sleep.backward_ms / 1000),
        update=_undisturbed(phases.update, 0.0),
    )
    return replace(measured, phases=[undisturbed])


def _undisturbed(spent: Spent, asleep_s: float) -> Spent:
    return Spent(asleep_s + spent.cpu_s, spent.cpu_s)


def _loopback() -> Network:
    """What two ranks have now. Each sends one half, twice, and both share the machine's memory and cores."""
    times = run_ranks(2, _time_all_reduces)[0]
    copying_s = max(times.bucket_s - times.small_s, times.bucket_s / 10)  # on a machine that others use too
    bandwidth_gb_s = 2 * BUCKET_MB * 2**20 / copying_s / 1e9
    link = Link(bandwidth_gb_s, times.small_s / 2 * 1e6, shared_cores=len(sched_getaffinity(0)))
    return Network(link, link, "ring")


def _time_all_reduces() -> _Times:
    """In turns, so that what else runs on the machine slows both."""
    group = join("cpu", timeout_s=60)
    sizes = (SMALL_NUMBERS, int(BUCKET_MB * 2**20) // 4)
    values = [torch.zeros(numbers) for numbers in sizes]
    seconds: list[list[float]] = [[], []]
    for _ in range(TIMES):
        for each, found in zip(values, seconds, strict=True):
            group.barrier()
            start = time.perf_counter()
            group.sum_on_device(each)
            found.append(time.perf_counter() - start)
    group.leave()
    small_s, bucket_s = (quantiles(each[TIMES // 4 :], n=4)[0] for each in seconds)
    return _Times(small_s, bucket_s)


def _step_s(sleep: Sleep, ranks: int) -> float:
    shape = (f"launch.workers_per_node={ranks}", f"data.global_batch_size={RANK_ROWS * ranks}")
    with training(*sleep.overrides, *shape, steps=STEPS) as one:
        run(one)
        times = [tick.time for tick in ticks(one)][WARM_UP_STEPS:]
    return quantiles([after - before for before, after in pairwise(times)], n=4)[0]
