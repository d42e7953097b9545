"""Stops a run whose metric no longer improves."""

import math
from collections.abc import Mapping
from typing import Any

from dist_trainer.config.schema import EarlyStoppingConfig
from dist_trainer.errors import ConfigError


class EarlyStopping:
    """Counts evaluations in a row without a better value; NaN is never better, and 0.0 is a value."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self._config = config
        self._best: float | None = None
        self._without = 0

    @property
    def is_due(self) -> bool:
        """Whether patience has run out."""
        return self._without >= self._config.patience

    def update(self, metrics: Mapping[str, float]) -> None:
        """Look at an evaluation. Raises ConfigError where it lacks the metric."""
        name = self._config.metric
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(f"train.early_stopping.metric is {name}; an evaluation gives {known}")
        if self._is_better(metrics[name]):
            self._best, self._without = metrics[name], 0
        else:
            self._without += 1

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None:
            return True
        return value < self._best if self._config.mode == "min" else value > self._best

    def state_dict(self) -> dict[str, Any]:
        """The best value, and how many evaluations have passed since."""
        return {"best": self._best, "without": self._without}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back `state_dict`."""
        self._best, self._without = state["best"], state["without"]
