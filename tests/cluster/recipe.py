"""The module of a user's project on the cluster: a small noisy training whose every phase a test can hold.

A phase waits while the file `hold-<phase>` is in the working folder, and says in `reached-<phase>` that it does.
Samples are slow until the file `hurry` is there.
"""

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_trainer.tracking.heartbeat import BEFORE_TRAINING, read_heartbeat

LENGTH, CLASSES, FEATURES = 60, 3, 6
_fsync = os.fsync


def hold(phase: str) -> None:
    """Wait as long as the test wants this phase to last."""
    while (Path.cwd() / f"hold-{phase}").exists():
        (Path.cwd() / f"reached-{phase}").touch()
        time.sleep(0.05)


def has_begun() -> bool:
    """Whether the ranks train: before that they read a few rows of each data set, to compare them."""
    beats = map(read_heartbeat, Path("runs").glob("*/heartbeat/rank-*"))
    return all(beat and beat.phase not in BEFORE_TRAINING for beat in beats)


def _slow_fsync(descriptor: int) -> None:
    if "/checkpoints/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
        hold("save")
    _fsync(descriptor)


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Separable classes with noise that is drawn when a sample is read; each read takes `sample_s` until then."""

    def __init__(self, phase: str, sample_s: float = 0.0, length: int = LENGTH) -> None:
        os.fsync = _slow_fsync
        hold("start")
        self.phase = phase
        self.sample_s = sample_s
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.randint(0, CLASSES, (length,), generator=generator)
        self.inputs = torch.randn(length, FEATURES, generator=generator) + 2 * self.targets[:, None]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if has_begun():
            hold(self.phase)
        if Path("kill-workers").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if not Path("hurry").exists():
            time.sleep(self.sample_s)
        return self.inputs[index] + 0.3 * torch.randn(FEATURES), self.targets[index]


class Net(nn.Module):
    """With dropout and batch norm: bits that differ show."""

    def __init__(self, fail: str = "") -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 64)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, CLASSES))
        self.fail = fail

    def forward(self, inputs: Tensor) -> Tensor:
        if self.fail:
            raise ValueError(self.fail)
        hidden = self.norm(self.first(inputs).unflatten(1, (16, 4))).flatten(1)
        return self.head(torch.relu(hidden))
