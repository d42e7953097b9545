"""When MLflow has to do with a training, as its run folder tells: a benchmark of that measures nothing before."""

import time
from pathlib import Path
from typing import Any

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.sync_state import SyncState, count_left
from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer

LIMIT_S = 45.0  # ranks that wait for rank 0 longer than launch.timeout_s allows would be taken for hung


class HoldUntilCarried(Hook):
    """At one step rank 0 waits, and the others for it, until MLflow took the first points or refused.

    The process that carries needs seconds to import mlflow, and more beside ranks that keep every core busy.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step != self.step or not trainer.attempt.is_rank_zero:
            return
        run, deadline = RunFolder.open("runs/run"), time.monotonic() + LIMIT_S
        while not is_met(run):
            if time.monotonic() > deadline:
                raise TimeoutError(f"MLflow neither took nor refused anything in {LIMIT_S:.0f} s")
            time.sleep(0.1)


def is_met(run: RunFolder) -> bool:
    """Whether a first batch was taken, or the process that carries has told that something was refused."""
    log = run.path / "logs" / "mlflow-sync.log"
    return any(SyncState.load(run).offsets.values()) or (log.exists() and " MLflow: " in log.read_text())


def points_sent(path: Path) -> int:
    """How many points MLflow has taken from the run by now."""
    run = RunFolder.open(path)
    return count_left(run, SyncState()) - count_left(run, SyncState.load(run))
