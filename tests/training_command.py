"""The main job as a user gives it: one command in a folder of its own, whose run is read from disk."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from dist_trainer.tracking.heartbeat import read_heartbeat
from tests.launchers.processes import Command, wait_for

CONFIG = """
name: run
seed: 3
model: {target: tests.training.recipes.Net}
data:
  train: {target: tests.training.recipes.Noisy}
  val: {target: tests.training.recipes.Noisy, length: 50, noise: 0.0}
  global_batch_size: 14
  num_workers: 2
loss: {target: torch.nn.CrossEntropyLoss}
metrics: {accuracy: {target: dist_trainer.training.metrics.Accuracy}}
optimizer: {target: torch.optim.SGD, lr: 0.05, momentum: 0.9}
scheduler: {target: torch.optim.lr_scheduler.CosineAnnealingLR, warmup_steps: 5}
hooks: [{target: tests.training.recipes.Slow, seconds: 0.01}]
train: {epochs: 12, accumulate_steps: 2, eval_every_epochs: 3}
ddp: {bucket_cap_mb: 0.01}
checkpoint: {every_steps: 10}
tracking: {uri: null, log_every_steps: 1}
launch: {device: cpu, workers_per_node: 3, timeout_s: 30}
"""
STEPS = 12 * 8


class Training:
    """One run in a folder of its own, trained by the command."""

    def __init__(self, folder: Path, *overrides: str, config: str = CONFIG, steps: int = STEPS) -> None:
        self.folder, self.overrides, self.steps = folder, overrides, steps
        self.run = folder / "runs" / "run"
        self.commands: list[Command] = []
        (folder / "run.yaml").write_text(config)

    def start(self) -> Command:
        arguments = [sys.executable, "-m", "dist_trainer.cli", "train", "run.yaml", *self.overrides]
        self.commands.append(Command(*arguments, folder=self.folder))
        return self.commands[-1]

    def finish(self) -> None:
        command = self.start()
        code = command.finish(timeout_s=90)
        assert code == 0, command.stderr + command.stdout

    def sync(self) -> Command:
        """Carry to MLflow what it has not got yet."""
        self.commands.append(
            Command(sys.executable, "-m", "dist_trainer.cli", "sync", "run", folder=self.folder)
        )
        self.commands[-1].finish(timeout_s=60)
        return self.commands[-1]

    def wait_for_step(self, step: int, rank: int = 0, *, timeout_s: float = 60) -> int:
        """Wait until the rank has got to the step in the newest attempt; its pid."""
        attempts = sum('"start"' in line for line in self.attempts())
        path = self.run / "heartbeat" / f"rank-{rank}"

        def there() -> bool:
            beat = read_heartbeat(path)
            return beat is not None and beat.step >= step and beat.attempt >= max(1, attempts)

        wait_for(there, timeout_s=timeout_s, what=f"step {step}")
        beat = read_heartbeat(path)
        assert beat is not None
        return beat.pid

    def attempts(self) -> list[str]:
        path = self.run / "attempts.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def digest(self) -> str:
        newest = max(path.parent.name for path in self.run.glob("checkpoints/*/COMMIT.json"))
        model = self.run / "checkpoints" / newest / "model.safetensors"
        assert newest.startswith(f"step-{self.steps:09d}")
        return hashlib.sha256(model.read_bytes()).hexdigest()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return status
