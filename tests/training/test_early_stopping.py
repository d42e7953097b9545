"""Patience, better values, and what is neither."""

import math
from typing import Any

import pytest

from dist_trainer.config.schema import BestConfig, EarlyStoppingConfig
from dist_trainer.errors import ConfigError
from dist_trainer.training.best import Best
from dist_trainer.training.early_stopping import EarlyStopping


@pytest.mark.parametrize(
    ("mode", "values", "due_after"),
    [
        ("min", [3, 2, 2, 2], 4),
        ("min", [3, 0.0, 1, 1], 4),  # 0.0 is a value
        ("max", [0.1, 0.2, 0.2, 0.3, 0.3, 0.1], 6),
        ("min", [math.nan, math.nan], 2),
        ("min", [1, math.nan, 0.5, math.nan, 0.4], None),
        ("min", [5, 4, 3, 2, 1], None),
    ],
)
def test_patience_counts_evaluations_without_a_better_value(
    mode: str, values: list[float], due_after: int | None
) -> None:
    stopping = EarlyStopping(EarlyStoppingConfig(metric="val/x", mode=mode, patience=2))  # type: ignore[arg-type]
    seen = 0
    while seen < len(values) and not stopping.is_due:
        stopping.update({"val/x": values[seen]})
        seen += 1
        restored = EarlyStopping(EarlyStoppingConfig(metric="val/x", mode=mode, patience=2))  # type: ignore[arg-type]
        restored.load_state_dict(stopping.state_dict())
        stopping = restored
    assert (seen if stopping.is_due else None) == due_after


@pytest.mark.parametrize("now", [{"metric": "val/y"}, {"metric": "val/x", "mode": "max"}])
def test_a_best_value_of_another_metric_or_mode_counts_for_nothing(now: dict[str, Any]) -> None:
    before = EarlyStopping(EarlyStoppingConfig(metric="val/x", patience=2))
    for value in (0.1, 0.2, 0.3):
        before.update({"val/x": value})
    assert before.is_due
    stopping = EarlyStopping(EarlyStoppingConfig(**{"patience": 2, **now}))
    stopping.load_state_dict(before.state_dict())
    assert not stopping.is_due
    stopping.update({now["metric"]: 5.0 if "mode" not in now else 0.05})
    stopping.update({now["metric"]: 6.0 if "mode" not in now else 0.01})
    assert not stopping.is_due, "the first of these was the best so far"


def test_nan_is_never_the_best() -> None:
    best = Best(BestConfig(metric="val/x", mode="min"))
    assert [best.update(value) for value in (math.nan, 3.0, math.nan, 3.0, 2.0)] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train.early_stopping.metric is val/x; an evaluation gives val/y"):
        EarlyStopping(EarlyStoppingConfig(metric="val/x")).update({"val/y": 1.0})
