"""The arithmetic of the range test: its rates, when a loss has diverged, where it is lowest, what is suggested."""

import math
import random

import pytest
import torch

from dist_trainer.config.load import Loaded
from dist_trainer.config.schema import Config
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.tuning.growing import GrowingRate
from dist_trainer.tuning.range_test import Divergence, Rates, curve_of, smooth
from dist_trainer.tuning.trial import with_rate

TRIED = Rates(1e-6, 10.0, 100)
SEED = random.Random(7)
NOISE = [SEED.gauss(0, 0.02) for _ in range(101)]


def losses(*, fall: float = 1.5, best: float = 0.1, noise: float = 1.0) -> list[float]:
    """As of a training whose loss starts at 2.3, falls until the rate is `best`, and then rises without end."""
    found = [2.3 + noise * NOISE[0]]
    for step in range(TRIED.steps):
        decades = math.log10(TRIED.at(step) / best)
        value = 2.3 - fall * math.exp(-(decades**2)) if decades < 0 else 2.3 - fall + 8 * decades
        found.append(value + noise * NOISE[step + 1])
    return found


def watched(values: list[float]) -> int | None:
    """The step at which a test would end, from 0."""
    divergence = Divergence(TRIED.at_rest)
    return next((step for step, value in enumerate(values) if divergence.add(value)), None)


def test_each_rate_is_the_same_factor_above_the_last() -> None:
    assert (TRIED.at(0), TRIED.at(99)) == pytest.approx((1e-6, 10.0))
    ratios = {round(TRIED.at(step + 1) / TRIED.at(step), 9) for step in range(99)}
    assert len(ratios) == 1 and TRIED.decades == pytest.approx(7)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((0.0, 1.0, 50), "--min must be more than 0"),
        ((1.0, 1.0, 50), "less than --max"),
        ((1e-6, math.inf, 50), "less than --max"),
        ((1e-3, 1.000001e-3, 50), "--max must be at least 2 times --min, for a curve, got 0.001 and"),
        ((1e-6, 1.0, 19), "--steps must be at least 20"),
    ],
)
def test_rates_that_make_no_curve_are_refused(given: tuple[float, float, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Rates(*given)


def test_the_schedule_gives_every_group_these_rates_times_its_own_scale() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 5e-6}]
    optimizer = torch.optim.SGD(groups, lr=1e-6)
    schedule = GrowingRate(optimizer, TRIED.lowest, TRIED.highest, TRIED.steps)
    for step in range(TRIED.steps):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([TRIED.at(step), 5 * TRIED.at(step)])
        optimizer.step()
        schedule.step()


def test_an_optimizer_that_the_configuration_did_not_make_is_refused() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    with pytest.raises(ConfigError, match=r"makes its own Adam with the rate 0.0002, in which optimizer.lr"):
        GrowingRate(optimizer, TRIED.lowest, TRIED.highest, TRIED.steps)


def test_the_rate_is_a_tenth_of_that_with_the_lowest_loss_whatever_the_noise() -> None:
    for noise in (0.0, 1.0, 3.0):
        curve = curve_of(TRIED, losses(noise=noise)[:95])
        assert curve.suggested is not None and 0.004 < curve.suggested < 0.013
    assert curve_of(TRIED, losses(best=1e-3)).suggested == pytest.approx(1e-4, rel=0.5)


def test_a_loss_that_only_wavers_or_rises_gives_no_rate() -> None:
    flat = [2.3 + noise for noise in NOISE]
    assert curve_of(TRIED, flat).lowest is None
    assert curve_of(TRIED, [2.3 + 0.05 * step for step in range(101)]).lowest is None


def test_a_rise_to_twice_the_first_loss_is_a_divergence_and_so_is_a_loss_that_is_no_number() -> None:
    values = losses()
    end = watched(values)
    assert end is not None and values[end] > 2 * 2.3 and TRIED.at(end) < 10
    assert watched([2.3, 2.2, math.nan]) == 2
    assert watched([2.3, math.inf]) == 1


@pytest.mark.parametrize("start", [0.0, 0.01, -4.0, 1000.0])
def test_noise_is_no_divergence_wherever_a_loss_begins(start: float) -> None:
    assert watched([start + 10 * noise for noise in NOISE]) is None


def test_smoothing_keeps_a_line_and_the_length() -> None:
    line = [float(step) for step in range(50)]
    assert smooth(line, 2.0)[10:40] == pytest.approx(line[10:40])
    assert len(smooth(line[:3], 5.0)) == 3
    assert smooth(line[:3], 1e9) == pytest.approx([1.0] * 3), "it costs as much as there are values"


def test_the_narrowest_rates_still_give_a_curve() -> None:
    narrow = Rates(1e-3, 2e-3, 20)
    assert curve_of(narrow, [2.0 - 0.05 * step for step in range(21)]).suggested is not None
    assert curve_of(narrow, [2.0 + noise for noise in NOISE[:21]]).suggested is None


def loaded(**optimizer: object) -> Loaded:
    config = Config.model_validate(
        {
            "name": "run",
            "model": {"target": "torch.nn.Linear"},
            "data": {"train": {"target": "torchvision.datasets.FakeData"}},
            "loss": {"target": "torch.nn.CrossEntropyLoss"},
            "optimizer": {"target": "torch.optim.SGD", **optimizer},
        }
    )
    return Loaded(config, lambda key: "run.yaml:5")


def test_the_line_keeps_every_other_argument_and_the_ratio_of_the_groups_rates() -> None:
    groups = [{"match": "*.bias", "lr_scale": 2.0}, {"match": "head.*", "lr": 0.5, "weight_decay": 0.0}]
    found = with_rate(loaded(momentum=0.9, lr=0.1, groups=groups), 0.02)
    assert list(found) == ["target", "lr", "momentum", "groups"]
    assert found == {
        "target": "torch.optim.SGD",
        "lr": 0.02,
        "momentum": 0.9,
        "groups": [{"match": "*.bias", "lr_scale": 2.0}, {"match": "head.*", "lr": 0.1, "weight_decay": 0.0}],
    }
    assert with_rate(loaded(), 0.02) == {"target": "torch.optim.SGD", "lr": 0.02}
    with pytest.raises(
        ConfigError, match=r"run.yaml:5: optimizer.groups.0.lr is given and optimizer.lr is not"
    ):
        with_rate(loaded(groups=[{"match": "*", "lr": 0.5}]), 0.02)
