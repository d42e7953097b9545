"""Stops a run whose metric no longer improves."""

from collections.abc import Mapping
from typing import Any

from dist_trainer.config.schema import EarlyStoppingConfig
from dist_trainer.errors import ConfigError
from dist_trainer.training.best import Best


class EarlyStopping:
    """Counts evaluations in a row without a better value."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self._config = config
        self._best = Best(config)
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
        self._without = 0 if self._best.update(metrics[name]) else self._without + 1

    def state_dict(self) -> dict[str, Any]:
        """The best value, and how many evaluations have passed since."""
        return {"best": self._best.state_dict(), "without": self._without}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back `state_dict`; with another metric or mode the count starts anew."""
        self._without = state["without"] if self._best.load_state_dict(state["best"]) else 0
