"""A hook that sees where a training stands and draws it, however that is done; and the words for it."""

import time
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dist_trainer.training.hooks import Hook

if TYPE_CHECKING:
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer

REDRAW_EVERY_S = 0.25


class ProgressHook(Hook, ABC):
    """Calls `draw` with step, epoch, loss, samples per second and the time left, a few times a second at most."""

    every_s = REDRAW_EVERY_S
    draws_the_last = True  # whenever that is

    def __init__(self) -> None:
        self._attempt: Any = None  # the one that is shown
        self._first = (0, 0.0)  # its first step that was seen, and when
        self._drawn_at = 0.0

    def begin(self, trainer: "Trainer") -> None:
        """Another attempt is seen for the first time."""

    @abstractmethod
    def draw(self, trainer: "Trainer", step: int, words: str) -> None:
        """Show where the training stands."""

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if trainer.attempt is not self._attempt:
            self._attempt, self._first, self._drawn_at = trainer.attempt, (step, now), now
            self.begin(trainer)
        is_last = self.draws_the_last and step == trainer.parts.total_steps
        if is_last or now - self._drawn_at >= self.every_s:
            self._drawn_at = now
            self.draw(trainer, step, self._words(trainer, step, result.loss, now))

    def _words(self, trainer: "Trainer", step: int, loss: float, now: float) -> str:
        sampler = trainer.parts.sampler
        words = [f"epoch {step / sampler.steps_per_epoch:.1f}", f"loss {loss:.4g}"]
        steps, seconds = step - self._first[0], now - self._first[1]
        if steps and seconds:
            rows = steps * trainer.settings.data.global_batch_size
            left_s = round((trainer.parts.total_steps - step) * seconds / steps)
            words += [f"{rows / seconds:,.0f} samples/s", f"{timedelta(seconds=left_s)} left"]
        return ", ".join(words)
