"""The small training that random faults hit: it writes down what it trained on, and breaks once where told to.

A file `break-<where>` in the current folder says how the first process that gets there breaks: one that reads a
row (a rank, or a loader process of one), or a rank after a step. Whoever removes the file is the one, so it
happens once, and at a moment that no seed of the training's own decides.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from dist_trainer.adapters.place import Place
from dist_trainer.training.hooks import Hook
from dist_trainer.training.metrics import Accuracy
from dist_trainer.training.task import Supervised
from dist_trainer.training.trainer import Trainer
from tests.training.recipes import LENGTH, Noisy
from tests.training.slow import wait_if_slow

BATCH, EPOCHS = 14, 8
STEPS_PER_EPOCH = -(-LENGTH // BATCH)
STEPS = EPOCHS * STEPS_PER_EPOCH
EVAL_EVERY = 2 * STEPS_PER_EPOCH
CONFIG = f"""
name: run
seed: 3
model: {{target: tests.training.recipes.Net}}
data:
  train: {{target: tests.faults.recipe.Breakable}}
  val: {{target: tests.faults.recipe.Breakable, length: 50, noise: 0.0}}
  global_batch_size: {BATCH}
  eval_batch_size: 2
task: {{target: tests.faults.recipe.Telling}}
loss: {{target: torch.nn.CrossEntropyLoss}}
metrics: {{accuracy: {{target: tests.faults.recipe.UnhurriedAccuracy}}}}
optimizer: {{target: torch.optim.SGD, lr: 0.05, momentum: 0.9}}
scheduler: {{target: torch.optim.lr_scheduler.CosineAnnealingLR, warmup_steps: 5}}
hooks: [{{target: tests.faults.recipe.Timed, seconds: 0.01}}]
train: {{epochs: {EPOCHS}, accumulate_steps: 2, eval_every_epochs: 2}}
ddp: {{bucket_cap_mb: 0.01}}
checkpoint: {{every_steps: 7}}
tracking: {{uri: null, log_every_steps: 1}}
launch: {{device: cpu, workers_per_node: 3, timeout_s: 30}}
"""


class Deliberate(Exception):
    """What a test made go wrong."""


def break_if_told(where: str) -> None:
    """Break in the way that the file says, in the one process that removes it."""
    path = Path(f"break-{where}")
    try:
        how = path.read_text()
        path.unlink()
    except FileNotFoundError:
        return
    with Path("broken").open("a") as file:
        file.write(f"{where} {how} {os.getpid()}\n")
    _break(how)


def _break(how: str) -> NoReturn:
    if how.startswith("os._exit"):
        os._exit(int(how.split()[1]))
    if how.startswith("sys.exit"):
        sys.exit(int(how.split()[1]))
    raise Deliberate(how)


class Breakable(Noisy):
    """Rows whose reading may break."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        break_if_told("row")
        return super().__getitem__(index)


class UnhurriedAccuracy(Accuracy):
    """Gives a fault the time to hit an evaluation."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().measure(output, target)


class Telling(Supervised):
    """Writes which rows each forward pass trains on, before their gradients go to the other ranks.

    So whatever a checkpoint holds has been written down: a rank can die between the update and its hooks.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__(loss)
        place = Place.from_environment()
        path = f"rows-attempt-{place.fence or 0:04d}-rank-{place.rank}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._step: int | None = None  # none yet: a first pass that only measures trains nothing
        self.began = time.perf_counter()

    def phases(self, step: int) -> Sequence[str]:
        self._step, self.began = step, time.perf_counter()
        return super().phases(step)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        if model.training and self._step is not None:
            os.write(self._file, (json.dumps([self._step, batch[2].tolist()]) + "\n").encode())
        return super().forward(model, batch)


class Timed(Hook):
    """Gives a test the time to hit a step, and writes on rank 0 how long each took from its data to its hooks."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        time.sleep(self.seconds)
        wait_if_slow("step")
        break_if_told("step")
        if trainer.attempt.is_rank_zero:
            assert isinstance(trainer.parts.task, Telling)
            seconds = time.perf_counter() - trainer.parts.task.began
            line = {"attempt": trainer.attempt.number, "step": step, "seconds": seconds}
            with Path("steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def trained_rows(folder: Path, first_steps: dict[int, int]) -> dict[int, dict[int, list[int]]]:
    """By step and rank the rows of the last attempt that trained it, in the order in which they were trained.

    `first_steps`: where each attempt began; passes before that are the replay of a resume, which trains nothing.
    """
    steps: dict[int, dict[int, list[int]]] = {}
    for path in sorted(folder.glob("rows-attempt-*.jsonl")):
        _, _, attempt, _, rank = path.stem.split("-")
        done: dict[int, list[int]] = {}
        for line in path.read_text().splitlines():
            step, rows = json.loads(line)
            if step >= first_steps.get(int(attempt), STEPS):
                done.setdefault(step, []).extend(rows)
        for step, rows in done.items():
            steps.setdefault(step, {})[int(rank)] = rows
    return steps
