"""What a range test puts into a training: a schedule whose rate grows, and a hook that ends it at divergence."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dist_trainer.errors import ConfigError
from dist_trainer.training.hooks import Hook
from dist_trainer.tuning.range_test import Divergence

if TYPE_CHECKING:
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer


class GrowingRate(LRScheduler):
    """From `lowest` to `highest` at the last of `count` updates, exponentially; each group by its own share of that.

    Raises ConfigError for an optimizer that was not made with the rate `lowest`, so not by the configuration.
    """

    def __init__(self, optimizer: Optimizer, lowest: float, highest: float, count: int) -> None:
        own = optimizer.defaults.get("lr", lowest)
        if float(own) != lowest:
            raise ConfigError(
                f"the task makes its own {type(optimizer).__name__} with the rate {float(own):g}, in which "
                "optimizer.lr has no part: it has to use what `make` gives in Task.optimizers"
            )
        self.factor, self.count = highest / lowest, count
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Of each group, for the update that comes next."""
        grown = self.factor ** (self.last_epoch / (self.count - 1))
        return [rate * grown for rate in self.base_lrs]


class EndOfTest(Hook):
    """Makes step `last` the last one, or the one at which the loss has diverged: it is the same on all ranks.

    The configuration asks for more steps, so that the run's own last step, which is evaluated, never comes.
    """

    def __init__(self, last: int, at_rest: int) -> None:
        self._last = last
        self._divergence = Divergence(at_rest)

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """A gradient that is not finite counts too, where no loss scale looks for its size by such."""
        failed = result.skipped and trainer.parts.train_step.scaler is None
        if self._divergence.add(math.nan if failed else result.loss) or step == self._last:
            parts = trainer.parts
            unmeasured = {split: loader for split, loader in parts.eval_loaders.items() if split != "test"}
            trainer.parts = replace(parts, total_steps=step, eval_loaders=unmeasured)
