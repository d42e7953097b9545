"""Which checkpoints are worth keeping."""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from dist_trainer.config.schema import BestConfig, CheckpointConfig


class _Candidate(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...


C = TypeVar("C", bound=_Candidate)


def kept(checkpoints: Sequence[_Candidate], config: CheckpointConfig) -> set[str]:
    """Names to keep of `checkpoints`, given newest first: the last few, the best, every Nth step."""
    names = {checkpoint.name for checkpoint in checkpoints[: config.keep_last]}
    if config.keep_best and (found := best(checkpoints, config.keep_best)):
        names.add(found.name)
    if every := config.keep_every_steps:
        names.update(checkpoint.name for checkpoint in checkpoints if checkpoint.step % every == 0)
    return names


def best(checkpoints: Sequence[C], config: BestConfig) -> C | None:
    """The one with the best value of the metric, of equal ones the newest; None where none has a value."""
    sign = 1.0 if config.mode == "min" else -1.0
    scored = [
        (sign * value, checkpoint)
        for checkpoint in checkpoints
        if isinstance(value := checkpoint.metrics.get(config.metric), int | float) and not math.isnan(value)
    ]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None
