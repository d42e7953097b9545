"""Schedules: warm-up, one step per update, metrics, and numbers that were meant per epoch."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from dist_trainer.errors import ConfigError
from dist_trainer.training.optimizer import check_built_schedule, check_schedule_unit, fill_schedule_length
from dist_trainer.training.schedule import Schedule


def sgd(rate: Any = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=rate)


def rates(schedule: Schedule, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The rate that each update is made with."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_in_a_line_and_then_the_scheduler_starts() -> None:
    optimizer = sgd()
    schedule = Schedule(optimizer, lambda each: schedulers.CosineAnnealingLR(each, T_max=6), warmup_steps=4)
    cosine = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates(schedule, optimizer, 10) == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_warm_up_alone_and_nothing_at_all() -> None:
    optimizer = sgd(torch.tensor(1.0))
    assert rates(Schedule(optimizer, None, warmup_steps=2), optimizer, 4) == [0.5, 1.0, 1.0, 1.0]
    optimizer = sgd()
    assert rates(Schedule(optimizer, None), optimizer, 2) == [1.0, 1.0]


BUILDERS: list[Callable[[Any], schedulers.LRScheduler]] = [
    lambda each: schedulers.StepLR(each, 3),
    lambda each: schedulers.MultiStepLR(each, [2, 5]),
    lambda each: schedulers.ExponentialLR(each, 0.9),
    lambda each: schedulers.CosineAnnealingLR(each, 8),
    lambda each: schedulers.CosineAnnealingWarmRestarts(each, 3),
    lambda each: schedulers.LinearLR(each, total_iters=4),
    lambda each: schedulers.OneCycleLR(each, 1.0, total_steps=8),
    lambda each: schedulers.PolynomialLR(each, 8),
]


@pytest.mark.parametrize("make", BUILDERS)
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_restored_schedule_goes_on_as_the_untouched_one(make: Any, warmup: int) -> None:
    untouched = sgd()
    expected = rates(Schedule(untouched, make, warmup_steps=warmup), untouched, 8 + warmup)
    first = sgd()
    schedule = Schedule(first, make, warmup_steps=warmup)
    found = rates(schedule, first, 3)
    second = sgd()
    resumed = Schedule(second, make, warmup_steps=warmup)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    assert found + rates(resumed, second, 5 + warmup) == expected


def test_plateau_looks_at_its_metric_at_evaluations_alone() -> None:
    optimizer = sgd()
    schedule = Schedule(
        optimizer,
        lambda each: schedulers.ReduceLROnPlateau(each, factor=0.1, patience=0),
        warmup_steps=2,
        metric="val/loss",
    )
    schedule.step_on({"val/loss": 1.0})  # still warming up: ignored
    assert rates(schedule, optimizer, 3) == [0.5, 1.0, 1.0]
    for value in (1.0, 2.0):
        schedule.step_on({"val/loss": value})
    assert rates(schedule, optimizer, 2) == pytest.approx([0.1, 0.1])
    with pytest.raises(ConfigError, match=r"scheduler.metric is val/loss; an evaluation gives val/x"):
        schedule.step_on({"val/x": 1.0})


def test_metric_and_plateau_belong_together() -> None:
    with pytest.raises(ConfigError, match=r"scheduler.metric names what ReduceLROnPlateau watches.*missing"):
        Schedule(sgd(), lambda each: schedulers.ReduceLROnPlateau(each))
    with pytest.raises(ConfigError, match="this scheduler takes none"):
        Schedule(sgd(), lambda each: schedulers.StepLR(each, 3), metric="val/loss")


def test_a_first_update_that_was_skipped_warns_of_nothing() -> None:
    schedule = Schedule(sgd(), lambda each: schedulers.StepLR(each, 3))
    schedule.step()  # warnings are errors here


def test_a_length_that_was_not_given_is_the_runs() -> None:
    assert fill_schedule_length(schedulers.CosineAnnealingLR, {}, 90) == {"T_max": 90}
    assert fill_schedule_length(schedulers.OneCycleLR, {"max_lr": 1}, 90)["total_steps"] == 90
    assert fill_schedule_length(schedulers.PolynomialLR, {"total_iters": 7}, 90) == {"total_iters": 7}
    assert fill_schedule_length(schedulers.StepLR, {"step_size": 2}, 90) == {"step_size": 2}


PER_EPOCH: list[tuple[Any, str]] = [
    (
        lambda each: schedulers.CosineAnnealingLR(each, T_max=90),
        "scheduler.T_max is 90.* 90 epochs are 9000 steps",
    ),
    (
        lambda each: schedulers.StepLR(each, step_size=30),
        "scheduler.step_size is 30.*30 epochs are 3000 steps",
    ),
    (
        lambda each: schedulers.MultiStepLR(each, [30, 60]),
        r"scheduler.milestones is \[30, 60\].*60 epochs are 6000",
    ),
    (lambda each: schedulers.ExponentialLR(each, 0.95), "scheduler.gamma is 0.95.*per epoch it is 0.9994872"),
]


@pytest.mark.parametrize(("make", "message"), PER_EPOCH)
def test_a_schedule_whose_numbers_count_epochs_is_explained(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_built_schedule(make(sgd()), epochs=90, steps=9000)


@pytest.mark.parametrize(
    ("name", "arguments", "epochs", "steps"),
    [
        ("CosineAnnealingLR", {"T_max": 9000}, 90, 9000),
        ("StepLR", {"step_size": 3000}, 90, 9000),
        ("MultiStepLR", {"milestones": [3000, 6000]}, 90, 9000),
        ("ExponentialLR", {"gamma": 0.9995}, 90, 9000),
        ("LinearLR", {"total_iters": 50}, 90, 1800),
        ("StepLR", {"step_size": 30}, None, 9000),
        ("StepLR", {"step_size": 30}, 90, 90),
    ],
)
def test_a_schedule_in_steps_is_left_alone(
    name: str, arguments: dict[str, Any], epochs: int | None, steps: int
) -> None:
    check_schedule_unit(name, arguments, epochs=epochs, steps=steps)


def test_a_short_epoch_hides_no_schedule_meant_per_epoch() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.milestones"):
        check_schedule_unit("MultiStepLR", {"milestones": [30, 60, 80]}, epochs=90, steps=1800)


@pytest.mark.parametrize("updates", [1, 5, 8])
def test_in_a_run_made_longer_the_rate_goes_on_as_if_it_had_always_been_that_long(updates: int) -> None:
    def schedule(each: Any, steps: int) -> Schedule:
        return Schedule(
            each,
            lambda target: schedulers.CosineAnnealingLR(target, steps - 2),
            warmup_steps=2,
            total_steps=steps,
        )

    short, long, resumed = sgd(), sgd(), sgd()
    before, always = schedule(short, 8), schedule(long, 20)
    rates(before, short, updates)
    rates(always, long, updates)
    longer = schedule(resumed, 20)
    resumed.load_state_dict(short.state_dict())
    longer.load_state_dict(before.state_dict())
    assert rates(longer, resumed, 20 - updates) == pytest.approx(rates(always, long, 20 - updates))
