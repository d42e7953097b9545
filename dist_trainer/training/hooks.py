"""Where a user's own code is called: after a step, after an evaluation, at the end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Result, Trainer


class Hook:
    """Subclass it and override what is wanted. Every rank calls it, at the same step.

    What a hook does on one rank alone must not be a collective, and an exception in it ends the run.
    """

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """After each update; `step` is how many have been done."""

    def on_evaluation(self, trainer: "Trainer", step: int, metrics: Mapping[str, float]) -> None:
        """After each evaluation."""

    def on_end(self, trainer: "Trainer", result: "Result") -> None:
        """After the last step, or an agreed earlier one."""
