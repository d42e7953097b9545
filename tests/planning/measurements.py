"""A configuration and what a probe might have measured of it: 16 rows a rank, 90 ms a step, 100 MB of gradients."""

from dataclasses import replace
from typing import Any

from dist_trainer.config.schema import Config
from dist_trainer.planning.assumptions import Given, assume
from dist_trainer.planning.measurement import Measurement, Phases, SaveTime, Spent
from dist_trainer.planning.plan import Plan, Question, make_plan
from dist_trainer.planning.timeline import in_order_of_backward

CONFIG = Config.model_validate(
    {
        "name": "grown",
        "model": {"target": "torch.nn.Linear"},
        "data": {"train": {"target": "torchvision.datasets.FakeData"}, "global_batch_size": 32},
        "loss": {"target": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"target": "torch.optim.SGD"},
    }
)


def phases(rows: int, *seconds: float) -> Phases:
    """With one core busy all the time."""
    between, forward, backward, update = (Spent(each, each) for each in seconds)
    return Phases(rows, between, forward, backward, update)


MEASURED = Measurement(
    device="cuda",
    dataset_rows=1_000_000,
    micro_batches=1,
    buffer_bytes=0,
    gradients=in_order_of_backward([1e6] * 100),
    phases=[phases(16, 0.01, 0.02, 0.05, 0.01)],
    save=SaveTime(300_000_000, stall_s=0.2, total_s=2.0),
)
THOUSAND = [2**power for power in range(11)]


def planned(
    *nodes: int,
    workers: int = 2,
    keeps_global_batch: bool = False,
    config: Config = CONFIG,
    measured: Measurement = MEASURED,
    **given: float,
) -> Plan:
    assumptions = assume(Given(**given), measured.device, workers=workers, cores=2)
    return make_plan(config, measured, Question(nodes, workers, keeps_global_batch), assumptions)


def changed(config: Config, section: str, **values: Any) -> Config:
    found = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: found})


def with_two_sizes() -> Measurement:
    """Four rows took a quarter of forward and backward, and as long as sixteen of all else."""
    return replace(MEASURED, phases=[*MEASURED.phases, phases(4, 0.01, 0.005, 0.0125, 0.01)])
