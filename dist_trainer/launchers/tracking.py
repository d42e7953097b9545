"""When the process that carries the journal to MLflow starts, and how long it is waited for."""

import subprocess
import time
from collections.abc import Callable

from dist_trainer.config.schema import TrackingConfig
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking import mlflow_sync
from dist_trainer.tracking.heartbeat import read_heartbeat
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.sync_state import SyncState, count_left

_FAILED = ("failed", "do-not-requeue")


class Tracking:
    """One MLflow process beside one training; nothing it does can fail the training."""

    def __init__(self, run: RunFolder, config: TrackingConfig) -> None:
        self._run = run
        self._wanted = config.uri is not None
        self._attempt = run.highest_fence() + 1
        self._before = run.read_status()
        self._process: subprocess.Popen[bytes] | None = None

    def start_when_training(self, report: Callable[[str], None]) -> None:
        """Start it after the first step: importing MLflow takes seconds that the start-up needs itself."""
        if not self._wanted or self._process is not None:
            return
        beat = read_heartbeat(self._run.heartbeat_path(0))
        if beat and beat.attempt >= self._attempt and beat.step >= 1:
            self._start(report)

    def finish(self, report: Callable[[str], None], *, hurry: Callable[[], bool]) -> None:
        """Wait until everything is sent, within reason; the rest is for `dist-trainer sync`."""
        self.start_when_training(report)
        if self._process is None and self._wanted and self._is_failed_cell():
            self._start(report)
        if self._process is None:
            return
        deadline = time.monotonic() + RunSettings.read(self._run).patience_s
        while self._process.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _is_failed_cell(self) -> bool:
        """A cell that failed before its first step is its sweep's all the same, and decides how that ended."""
        return self._run.info().sweep is not None and self._run.read_status().state in _FAILED

    @property
    def all_sent(self) -> bool:
        """Whether MLflow has every point of the journal, or is not to have them."""
        return not self._wanted or count_left(self._run, SyncState.load(self._run)) == 0

    def _start(self, report: Callable[[str], None]) -> None:
        try:
            self._process = mlflow_sync.start(self._run, before=self._before)
            problem = "" if self._process else "mlflow is not installed"
        except Exception as error:  # whatever it is: training goes on, and the journal has everything
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self._wanted = False
            report(f"metrics stay in the journal: the MLflow process cannot start: {problem}")
