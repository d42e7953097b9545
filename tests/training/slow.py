"""Parts of a training that are slow only while a file of their name lies in a folder, the current one.

So a test can hit the phase it means, and the numbers stay those of a training that was never slow.
"""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_trainer.training.hooks import Hook
from dist_trainer.training.metrics import Accuracy
from dist_trainer.training.trainer import Trainer
from tests.training.recipes import Noisy


def wait_if_slow(name: str, folder: Path = Path()) -> None:
    """For as many seconds as the file says."""
    path = folder / f"slow-{name}"
    if path.exists():
        time.sleep(float(path.read_text()))


class SlowRows(Noisy):
    """Each row takes its time."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        wait_if_slow("rows")
        return super().__getitem__(index)


class SlowOpening(Noisy):
    """Takes its time to be opened."""

    def __init__(self, length: int = 101, noise: float = 0.3) -> None:
        wait_if_slow("opening")
        super().__init__(length, noise)


class SlowAccuracy(Accuracy):
    """Each batch of an evaluation takes its time."""

    def __init__(self, folder: Path = Path()) -> None:
        super().__init__()
        self.folder, self.measured = folder, 0

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        self.measured += 1
        wait_if_slow("evaluation", self.folder)
        return super().measure(output, target)


class SlowSteps(Hook):
    """Each step and each save takes its time."""

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        time.sleep(0.01)
        wait_if_slow("step")
        writer = trainer.saves._writer
        if writer is not None and "commit" not in vars(writer._store):
            commit = writer._store.commit

            def slowly(*arguments: Any) -> Any:
                wait_if_slow("save")
                return commit(*arguments)

            writer._store.commit = slowly  # type: ignore[method-assign]
