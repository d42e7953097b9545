"""What is seen of a training that no agent of ours shows: a line drawn again in place, or one now and then."""

import shutil
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dist_trainer.training.hooks import Hook

if TYPE_CHECKING:
    from dist_trainer.training.result import Result
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer

_REDRAW_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
_CLEAR = "\r\x1b[K"


class Progress(Hook):
    """Calls `draw` with step, epoch, loss, samples per second and the time left, a few times a second at most."""

    every_s = _REDRAW_EVERY_S
    draws_the_last = True  # whenever that is

    def __init__(self) -> None:
        self._attempt: Any = None  # the one that is shown
        self._first = (0, 0.0)  # its first step that was seen, and when
        self._drawn_at = 0.0

    def begin(self, trainer: "Trainer") -> None:
        """Another attempt is seen for the first time."""

    def draw(self, trainer: "Trainer", step: int, words: str) -> None:
        """Show where the training stands."""
        raise NotImplementedError

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


class LineProgress(Progress):
    """Of a script, on rank 0: one line at the foot of the terminal, on standard error; elsewhere one every 10 s."""

    draws_the_last = False  # a sentence about the end follows

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = _is_terminal()
        self.every_s = _REDRAW_EVERY_S if self._is_terminal else _LINE_EVERY_S

    def draw(self, trainer: "Trainer", step: int, words: str) -> None:
        """In place of the line before, cut to the terminal's width."""
        text = f"step {step}/{trainer.parts.total_steps}, {words}"
        if not self._is_terminal:
            trainer.attempt.say(text)
        elif trainer.attempt.is_rank_zero:
            columns = shutil.get_terminal_size().columns
            _write(f"{_CLEAR}{text[: columns - 1]}")

    def on_end(self, trainer: "Trainer", result: "Result") -> None:
        """Take the line away."""
        if trainer.attempt.is_rank_zero:
            clear_line()


def clear_line() -> None:
    """Before a sentence is printed: take away what stands at the foot of a terminal."""
    if _is_terminal():
        _write(_CLEAR)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None: it was closed before Python started


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal was closed, and the training goes on
        sys.stderr.write(text)
        sys.stderr.flush()
