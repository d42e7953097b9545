"""The best value of a metric so far."""

import math
from collections.abc import Mapping
from typing import Any

from dist_trainer.config.schema import BestConfig, EarlyStoppingConfig


class Best:
    """Of the metric and mode that a section names. NaN is never better, and 0.0 is a value."""

    def __init__(self, config: BestConfig | EarlyStoppingConfig) -> None:
        self._metric, self._mode = config.metric, config.mode
        self._value: float | None = None

    def update(self, value: float) -> bool:
        """Take note of a new value; whether it is better than all before."""
        if math.isnan(value):
            return False
        if self._value is not None and not (
            value < self._value if self._mode == "min" else value > self._value
        ):
            return False
        self._value = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """The value, and of what it is the best."""
        return {"metric": self._metric, "mode": self._mode, "value": self._value}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Take back `state_dict`; False, and none is the best yet, where it is of another metric or mode."""
        is_same = (state["metric"], state["mode"]) == (self._metric, self._mode)
        self._value = state["value"] if is_same else None
        return is_same
