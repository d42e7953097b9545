"""What the tests of drills train besides the usual net: things that a resume cannot bring back, or nobody repeat."""

import os
import signal
import time
from typing import Any

import torch
from torch import Tensor

from dist_trainer.errors import ConfigError
from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer
from tests.training.recipes import Noisy, wait_for_a_checkpoint


class Forgetful(Hook):
    """Changes the weights by how many steps this process has done: no checkpoint knows that."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        self.steps += 1
        with torch.no_grad():
            for parameter in trainer.parts.model.parameters():
                parameter.mul_(1 + 1e-3 * self.steps)


class ByTheClock(Noisy):
    """Samples that depend on the time of day."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        inputs, target, row = super().__getitem__(index)
        return inputs + time.time() % 1, target, row


class Raises(Hook):
    """An exception on one rank."""

    def __init__(self, at: int, rank: int = 1) -> None:
        self.at, self.rank = at, rank

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step >= self.at and trainer.attempt.group.rank == self.rank:
            raise ValueError("this picture is empty")


class DiesAt(Raises):
    """SIGKILL of one rank, each time it gets there, once a checkpoint is there."""

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step >= self.at and trainer.attempt.group.rank == self.rank:
            wait_for_a_checkpoint(trainer)
            os.kill(os.getpid(), signal.SIGKILL)


class BadRow(Noisy):
    """One row cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        if index == 42:
            raise ValueError("this row is broken")
        return super().__getitem__(index)


class Infinite(Noisy):
    """Numbers that no loss survives, after some steps."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        inputs, target, row = super().__getitem__(index)
        return inputs * (float("inf") if index == 42 else 1.0), target, row


def misconfigured() -> None:
    """What only a worker can find out."""
    raise ConfigError("data.train.path must be a file, got nowhere.npz")
