"""Hooks that a small training loads by name: what happens to its storage, and at which step."""

import errno
import os
import resource
import time
from pathlib import Path
from typing import Any

from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer


class Settled(Hook):
    """Lets each save end before the next step, so that none is skipped and each fault meets the save it is for."""

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        while trainer.saves.is_busy:
            time.sleep(0.005)


class FullDisk(Settled):
    """From step `first` on nothing more can be written, until there is room again at step `last`.

    With `folder`, the disk that it is on is filled to its last byte. Without, this process may write no file beyond
    `limit` bytes, which stands for a full disk where no small one can be mounted.
    """

    def __init__(self, first: int, last: int, folder: str | None = None, limit: int = 600) -> None:
        self.first, self.last, self.limit = first, last, limit
        self.filler = Path(folder) / "filler" if folder else None

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        super().on_step(trainer, step, result)
        if trainer.attempt.has_agent:
            print(f"step {step} is in the log", "." * 5000, flush=True)  # more than is left of a page
        if step == self.first:
            fill(self.filler) if self.filler else self._limit_to(self.limit)
        if step == self.last:
            self.filler.unlink() if self.filler else self._limit_to(resource.RLIM_INFINITY)

    def _limit_to(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Unsaved(FullDisk):
    """The same for good: each step takes so long that the bound on unsaved training is soon met."""

    def __init__(self, first: int, folder: str | None = None) -> None:
        super().__init__(first, last=10**9, folder=folder)

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        super().on_step(trainer, step, result)
        if step > self.first:
            time.sleep(0.3)


def fill(path: Path) -> None:
    """Take all the room that there is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 16, 1 << 12, 1 << 8, 1):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    os.close(descriptor)
