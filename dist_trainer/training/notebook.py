"""What is different in a Jupyter notebook: a bar that is drawn again in place, and a kernel that must live on."""

import sys
import time
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Any

from dist_trainer.training.hooks import Hook

if TYPE_CHECKING:
    from dist_trainer.training.result import Result
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer

_REDRAW_EVERY_S = 0.25
_BAR_EM = 16


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; IPython in a terminal is not."""
    ipython: Any = sys.modules.get("IPython")  # a kernel has imported it
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def notebook_hooks() -> list[Hook]:
    """The progress where it can be seen."""
    return [NotebookProgress()] if in_kernel() else []


class NotebookProgress(Hook):
    """A bar with step, epoch, loss, samples per second and the time left, below the cell that trains."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._attempt: Any = None  # the one that the bar is of
        self._first = (0, 0.0)  # its first step that was seen, and when
        self._drawn_at = 0.0

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """Draw, a few times a second at most."""
        now = time.monotonic()
        if trainer.attempt is not self._attempt:
            self._attempt, self._handle, self._first = trainer.attempt, None, (step, now)
        if now - self._drawn_at >= _REDRAW_EVERY_S or step == trainer.parts.total_steps:
            self._drawn_at = now
            self._draw(step, trainer.parts.total_steps, self._words(trainer, step, result.loss, now))

    def on_end(self, trainer: "Trainer", result: "Result") -> None:
        """Say how it ended in the bar's place."""
        if self._handle is not None:
            self._draw(result.step, trainer.parts.total_steps, result.state)

    def _words(self, trainer: "Trainer", step: int, loss: float, now: float) -> str:
        sampler = trainer.parts.sampler
        words = [f"epoch {step / sampler.steps_per_epoch:.1f}", f"loss {loss:.4g}"]
        steps, seconds = step - self._first[0], now - self._first[1]
        if steps and seconds:
            rows = steps * trainer.settings.data.global_batch_size
            left_s = round((trainer.parts.total_steps - step) * seconds / steps)
            words += [f"{rows / seconds:,.0f} samples/s", f"{timedelta(seconds=left_s)} left"]
        return ", ".join(words)

    def _draw(self, step: int, total_steps: int, words: str) -> None:
        from IPython.display import display

        text = f"step {step}/{total_steps}, {words}"
        bar = f'<progress value="{step}" max="{total_steps}" style="width: {_BAR_EM}em"></progress>'
        shown = {"text/plain": text, "text/html": f"{bar} {escape(text)}"}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
