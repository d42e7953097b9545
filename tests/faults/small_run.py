"""A run of some seconds that the storage faults are tried on: by ranks of our own, or by the command."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_trainer import worker
from dist_trainer.adapters.storage import Storage
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command
from tests.ranks import run_ranks

CONFIG = """
name: run
model: {target: tests.training.recipes.Net}
data:
  train: {target: tests.training.recipes.Noisy}
  test: {target: tests.training.recipes.Noisy, length: 20, noise: 0.0}
  global_batch_size: 14
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 0.05, momentum: 0.9}
train: {steps: 30}
checkpoint: {every_steps: 5, keep_last: 3}
tracking: {uri: null, log_every_steps: 1}
launch: {device: cpu, workers_per_node: 1, timeout_s: 30, max_restarts: 1}
"""


def make_run(folder: Path, *overrides: str) -> RunFolder:
    """The run in `folder`/runs/run, not trained yet, with run.yaml beside it for the command."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(CONFIG)
    config = load_config([folder / "run.yaml"], list(overrides)).config
    return RunFolder.create(folder / "runs" / "run", dump_config(config), working_folder=folder)


def fit(run: RunFolder, ranks: int = 1, **variables: str) -> None:
    """Train it to its end, as its workers would, with these in their environment."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    run_ranks(ranks, _work, str(run.path), aws | variables, timeout_s=100)


def _work(path: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    # a store's faults are tried again at once: their number counts here, and not the seconds between them
    defaults = Storage.__init__.__kwdefaults__
    assert defaults is not None
    defaults["retry_delays_s"] = (0.01, 0.01, 0.01, 0.01)
    worker.main(path)


def train_command(folder: Path, *overrides: str) -> Command:
    """`dist-trainer train` on run.yaml in `folder`, ended: exit code in process.returncode."""
    arguments = [sys.executable, "-m", "dist_trainer.cli", "train", "run.yaml", *overrides]
    command = Command(*arguments, folder=folder)
    try:
        command.finish(timeout_s=100)
        return command
    finally:
        command.end()


def weights(run: RunFolder) -> str:
    """sha256 of the newest committed checkpoint's model, and its step."""
    newest = max(run.checkpoints.glob("step-*/COMMIT.json")).parent
    return f"{newest.name[:14]} {hashlib.sha256((newest / 'model.safetensors').read_bytes()).hexdigest()}"


def events(run: RunFolder, kind: str, rank: int = 0) -> Sequence[dict[str, Any]]:
    """The journal's events of a kind."""
    lines = run.journal_path(rank).read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]
