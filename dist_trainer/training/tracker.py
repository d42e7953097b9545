"""Starts the process that carries the journal to MLflow, where no agent of ours does."""

import subprocess

from dist_trainer.config.schema import TrackingConfig
from dist_trainer.tracking.mlflow_sync import start
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.training.attempt import Attempt


class Tracker:
    """Rank 0's MLflow process under plain torchrun or a script; it starts after the first step."""

    def __init__(self, config: TrackingConfig, attempt: Attempt) -> None:
        self._run = attempt.run
        self._is_wanted = config.uri is not None and attempt.is_rank_zero and not attempt.has_agent
        self._process: subprocess.Popen[bytes] | None = None

    def after_step(self) -> None:
        """Start it, once: importing MLflow takes seconds that the first step need not wait for."""
        if self._is_wanted:
            self._process = start(self._run)
            self._is_wanted = False

    def close(self) -> None:
        """Give it time to send what is left; it ends by itself in any case."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=RunSettings.read(self._run).patience_s)
        except subprocess.TimeoutExpired:
            print(f"MLflow did not answer; dist-trainer sync {self._run.path} sends what is left", flush=True)
