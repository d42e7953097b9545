"""One training for a benchmark: the real command in a folder of its own, and when each of its steps ended."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer
from tests.launchers.processes import Command
from tests.training_command import Training

CONFIG = """
name: run
model: {target: dist_trainer.models.MLP, sizes: [6, 256, 256, 4]}
data:
  train: {target: tests.training.recipes.Noisy, length: 4096}
  global_batch_size: 128
task: {target: dist_trainer.training.task.Supervised}
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 0.01}
hooks: [{target: benchmarks.trained.Clock}]
train: {steps: 1000, eval_every_epochs: null}
checkpoint: {every_steps: 200}
tracking: {uri: null, log_every_steps: 1}
launch: {device: cpu, workers_per_node: 2, timeout_s: 30}
"""


class Clock(Hook):
    """Writes on rank 0 when each step ended; some microseconds, and it is there when the rank is killed."""

    def __init__(self) -> None:
        self._file = os.open("clock.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if trainer.attempt.is_rank_zero:
            line = {"attempt": trainer.attempt.number, "step": step, "time": time.time()}
            os.write(self._file, (json.dumps(line) + "\n").encode())


@dataclass(frozen=True)
class Tick:
    """The end of a step, in unix seconds."""

    attempt: int
    step: int
    time: float


@contextmanager
def training(*overrides: str, steps: int) -> Iterator[Training]:
    """One run in a temporary folder; whatever is left of it ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    one = Training(folder, f"train.steps={steps}", *overrides, config=CONFIG, steps=steps)
    try:
        yield one
    finally:
        for command in one.commands:
            command.end()
        shutil.rmtree(folder)


def run(one: Training, *, meanwhile: Callable[[Command], None] = lambda command: None) -> float:
    """Train to the end, whatever happens `meanwhile`; when the command ended, in unix seconds."""
    command = one.start()
    meanwhile(command)
    code = command.finish(timeout_s=300)
    ended = time.time()
    if code != 0:
        raise RuntimeError(f"exit code {code}: {command.stderr}")
    return ended


def ticks(one: Training) -> list[Tick]:
    """When each step ended, in the order in which they did."""
    lines = (one.folder / "clock.jsonl").read_text().splitlines()
    return [Tick(**json.loads(line)) for line in lines]
