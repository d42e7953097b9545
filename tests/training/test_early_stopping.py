"""Patience, better values, and what is neither."""

import math

import pytest

from dist_trainer.config.schema import EarlyStoppingConfig
from dist_trainer.errors import ConfigError
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


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train.early_stopping.metric is val/x; an evaluation gives val/y"):
        EarlyStopping(EarlyStoppingConfig(metric="val/x")).update({"val/y": 1.0})
