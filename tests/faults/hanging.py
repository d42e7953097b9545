"""Things that hang, once or always, on one rank: for runs of tests/training_command.py."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer
from tests.training.recipes import Net, Noisy


def hang_once(marker: str, rank: int) -> None:
    """Never returns on that rank, the first time."""
    if int(os.environ.get("RANK", 0)) == rank and not Path(marker).exists():
        Path(marker).touch()
        while True:
            time.sleep(0.05)


class HangingRow(Noisy):
    """Rows that cannot be read by a rank, once, when it trains: a few are read before to compare the ranks'."""

    def __init__(self, rank: int = 2, after: int = 20) -> None:
        super().__init__()
        self.rank, self.after, self.reads = rank, after, 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        self.reads += 1
        if self.reads > self.after:
            hang_once("hung", self.rank)
        return super().__getitem__(index)


class HangingStart(Noisy):
    """A data set that one rank cannot open, once."""

    def __init__(self, rank: int = 1) -> None:
        super().__init__()
        hang_once("hung", rank)


class HangingNet(Net):
    """Computes for ever on rank 1 at its nth batch, once or `always`; in training or in evaluation."""

    def __init__(
        self, at: int = 20, when: str = "train", always: bool = False, slow_first_s: float = 0.0
    ) -> None:
        super().__init__()
        self.at, self.when, self.always, self.slow_first_s = at, when, always, slow_first_s
        self.calls = {True: 0, False: 0}

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls[self.training] += 1
        if self.slow_first_s and self.calls[self.training] == 1:  # as a compiler would
            time.sleep(self.slow_first_s)
        if self.training == (self.when == "train") and self.calls[self.training] == self.at:
            if self.always:
                Path("hung").unlink(missing_ok=True)
            hang_once("hung", 1)
        return super().forward(inputs)


class SlowAt(Hook):
    """A hook that takes long once in a while."""

    def __init__(self, step: int, seconds: float) -> None:
        self.step, self.seconds = step, seconds

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step == self.step:
            time.sleep(self.seconds)


class SlowRank(Net):
    """Takes three times as long on one rank, from its nth training batch on."""

    def __init__(self, rank: int = 2, after: int = 0, seconds: float = 0.05) -> None:
        super().__init__()
        self.rank, self.after, self.seconds = rank, after, seconds
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            is_slow = int(os.environ.get("RANK", 0)) == self.rank and self.calls > self.after
            time.sleep(self.seconds * (3 if is_slow else 1))
        return super().forward(inputs)


class SlowRows(Noisy):
    """Rows that one rank reads slowly."""

    def __init__(self, rank: int = 0, seconds: float = 0.01) -> None:
        super().__init__()
        self.rank, self.seconds = rank, seconds

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        time.sleep(self.seconds * (4 if int(os.environ.get("RANK", 0)) == self.rank else 1))
        return super().__getitem__(index)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 4)
