"""What is seen of a training that no agent of ours shows: a line drawn again in place, or one now and then."""

import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from dist_trainer.adapters.place import Place
from dist_trainer.training.notebook import NotebookProgress, in_kernel
from dist_trainer.training.progress_hook import REDRAW_EVERY_S, ProgressHook

if TYPE_CHECKING:
    from dist_trainer.training.result import Result
    from dist_trainer.training.trainer import Trainer

_LINE_EVERY_S = 10.0
_CLEAR = "\r\x1b[K"


def own_progress() -> list[ProgressHook]:
    """What shows the progress in this process: nothing under our agent, a bar in a notebook's kernel, else a line."""
    if Place.from_environment().fence is not None:
        return []
    return [NotebookProgress() if in_kernel() else LineProgress()]


class LineProgress(ProgressHook):
    """Of a script, on rank 0: one line at the foot of the terminal, on standard error; elsewhere one every 10 s."""

    draws_the_last = False  # a sentence about the end follows

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = _is_terminal()
        self.every_s = REDRAW_EVERY_S if self._is_terminal else _LINE_EVERY_S

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
    """Whether standard error is one: it may be closed, or something that only takes words."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal was closed, and the training goes on
        sys.stderr.write(text)
        sys.stderr.flush()
