"""What is different in a Jupyter notebook: a bar that is drawn again in place, and a kernel that must live on."""

import sys
from html import escape
from typing import TYPE_CHECKING, Any

from dist_trainer.training.progress_hook import ProgressHook

if TYPE_CHECKING:
    from dist_trainer.training.result import Result
    from dist_trainer.training.trainer import Trainer

_BAR_EM = 16


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; IPython in a terminal is not."""
    ipython: Any = sys.modules.get("IPython")  # a kernel has imported it
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class NotebookProgress(ProgressHook):
    """A bar with the words beside it, below the cell that trains."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def begin(self, trainer: "Trainer") -> None:
        """A bar of its own."""
        self._handle = None

    def draw(self, trainer: "Trainer", step: int, words: str) -> None:
        """Draw the bar, or draw it again."""
        from IPython.display import display

        total_steps = trainer.parts.total_steps
        text = f"step {step}/{total_steps}, {words}"
        bar = f'<progress value="{step}" max="{total_steps}" style="width: {_BAR_EM}em"></progress>'
        shown = {"text/plain": text, "text/html": f"{bar} {escape(text)}"}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def on_end(self, trainer: "Trainer", result: "Result") -> None:
        """Say how it ended in the bar's place."""
        if self._handle is not None:
            self.draw(trainer, result.step, result.state)
