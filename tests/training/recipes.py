"""Small real trainings that tests run on ranks: a net with dropout, batch norm and data of its own randomness."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_trainer.training.hooks import Hook
from dist_trainer.training.metrics import Accuracy
from dist_trainer.training.task import Supervised
from dist_trainer.training.trainer import Result, Scheduler, Trainer

LENGTH, CLASSES, FEATURES = 101, 4, 6


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Separable classes; each sample is augmented with noise drawn when it is read, and says which row it is."""

    def __init__(self, length: int = LENGTH, noise: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.randint(0, CLASSES, (length,), generator=generator)
        centers = torch.randn(CLASSES, FEATURES, generator=generator) * 2
        self.inputs = centers[self.targets] + torch.randn(length, FEATURES, generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[index] + self.noise * torch.randn(FEATURES), self.targets[index], index


class Net(nn.Module):
    """Layers big enough that DDP makes several buckets of 10 kB, whose order matters at three ranks."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 64)
        self.norm = nn.BatchNorm1d(16)  # over 4 values of a row, so one row is enough
        self.second = nn.Linear(64, 64)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs).unflatten(1, (16, 4))).flatten(1))
        return self.head(self.dropout(torch.relu(self.second(hidden))))


class Seeing(Supervised):
    """Keeps which rows the model saw in training since the step began."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__(loss)
        self.seen: list[int] = []

    def phases(self, step: int) -> Sequence[str]:
        self.seen.clear()  # a step begins, or its replay after a resume
        return super().phases(step)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        if model.training:
            self.seen += batch[2].tolist()
        return super().forward(model, batch)


class Ledger(Hook):
    """Writes which rows were trained at each step, as they were in this rank's batches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        assert isinstance(trainer.parts.task, Seeing)
        indices = trainer.parts.task.seen
        rank = trainer.attempt.group.rank
        with (self.path / f"ledger-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "attempt": trainer.attempt.number, "rows": indices}) + "\n")


class KillAt(Hook):
    """SIGKILL of one rank after a step, once."""

    def __init__(self, rank: int, step: int, marker: Path) -> None:
        self.rank, self.step, self.marker = rank, step, marker

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if trainer.attempt.group.rank == self.rank and step == self.step and not self.marker.exists():
            wait_for_a_checkpoint(trainer)
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def wait_for_a_checkpoint(trainer: Trainer) -> None:
    """Until one is committed, which happens beside training: else a killed run may just start from scratch."""
    while not list(trainer.attempt.run.checkpoints.glob("step-*/COMMIT.json")):
        time.sleep(0.01)


def train(folder: str, options: dict[str, Any] | None = None, hooks: tuple[Hook, ...] = ()) -> Result:
    """Fit the net in <folder>/runs/run; `options` are dotted settings."""
    torch.manual_seed(0)
    settings = {
        "tracking.uri": None,
        "data.num_workers": 0,
        "train.accumulate_steps": 2,
        "train.epochs": 3,
        "data.global_batch_size": 14,
        "data.eval_batch_size": 16,
        "ddp.bucket_cap_mb": 0.01,
        "checkpoint.every_steps": 5,
        "tracking.log_every_steps": 1,
        "launch.timeout_s": 20.0,
    }
    trainer = Trainer(
        Net(),
        train=Noisy(),
        val=Noisy(50, noise=0.0),
        task=Seeing(nn.CrossEntropyLoss()),
        metrics={"accuracy": Accuracy()},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        scheduler=Scheduler(
            lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
            warmup_steps=4,
        ),
        hooks=(Ledger(Path(folder)), *hooks),
        name="run",
        runs=Path(folder) / "runs",
        settings=settings | (options or {}),
    )
    return trainer.fit()


def weights_digest(folder: Path) -> str:
    """sha256 of the newest committed model file."""
    checkpoints = (folder / "runs" / "run" / "checkpoints").glob("step-*/COMMIT.json")
    newest = max(checkpoints, key=lambda path: path.parent.name)
    return hashlib.sha256((newest.parent / "model.safetensors").read_bytes()).hexdigest()


def trained_rows(folder: Path) -> dict[int, list[int]]:
    """The rows of each step over all ranks, sorted; of a step done twice the last attempt's."""
    steps: dict[int, dict[int, list[int]]] = {}
    for path in sorted(folder.glob("ledger-*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            by_attempt = steps.setdefault(record["step"], {})
            by_attempt.setdefault(record["attempt"], []).extend(record["rows"])
    return {step: sorted(by_attempt[max(by_attempt)]) for step, by_attempt in sorted(steps.items())}


class Slow(Hook):
    """Gives a test the time to hit a step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        time.sleep(self.seconds)
