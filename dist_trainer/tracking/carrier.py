"""Carries what a run has on disk to MLflow, in an order that leaves the page useful wherever it is cut short:
points, parameters, end status, and then the files, the model's last.

Nothing is noted as carried before MLflow took it. What is sent twice after a crash is the same to the byte,
and MLflow keeps that once.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.config.redact import redact
from dist_trainer.errors import StorageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.final_model import final_model
from dist_trainer.tracking.parameters import parameters, redact_yaml
from dist_trainer.tracking.run_end import end_status
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.sync_state import JOURNALS, JournalPoints, SyncState

if TYPE_CHECKING:
    from dist_trainer.tracking.mlflow_sync import MlflowRun

_SLOWEST_UPLOAD_BYTES_PER_S = 2e6


class Unavailable(Exception):
    """MLflow does not take it now; it stays on disk."""


class Carrier:
    """One run on its way to MLflow. `carry` may be called for as long as it raises Unavailable."""

    def __init__(
        self, run: RunFolder, *, connect: Callable[[], "MlflowRun"], tell: Callable[[str], None]
    ) -> None:
        self._run = run
        self._connect = connect
        self._tell = tell
        self._mlflow: MlflowRun | None = None
        self._state = SyncState.load(run)
        self._journals: list[tuple[str, JournalPoints]] = []
        self._files_failed = False
        self.sent = 0
        self.failures = 0  # in a row
        self.progress = time.monotonic()  # when MLflow last took something
        self.allowance_s = 0.0  # what a large file may take beyond that

    def carry(self, end: str | None, *, running: bool = True) -> None:
        """Carry everything there is, and the end status if there is one. Raises Unavailable.

        `running`: without an end the run is being trained, and is shown so.
        """
        try:
            mlflow = self._connected()
            self._carry_points(mlflow)
            self._carry_parameters(mlflow)
            self._carry_status(mlflow, end or ("RUNNING" if running else ""))
            self._carry_files(mlflow, end)
            self.failures = 0
        except (Unavailable, OSError) as error:  # a full disk under the run folder passes too
            self.failures += 1
            self._mlflow = None
            raise Unavailable(str(error)) from error

    def _connected(self) -> "MlflowRun":
        if self._mlflow is None:
            self._mlflow = self._connect()
            if self._state.mlflow_run != self._mlflow.run_id:
                self._state = SyncState(self._mlflow.run_id, self._mlflow.experiment_id)
            folder = self._run.journal_path(0).parent
            self._journals = [(name, JournalPoints(folder / name, self._state)) for name in JOURNALS]
            self._state.save(self._run)  # no progress: to connect again and again carries nothing
        return self._mlflow

    def _save(self) -> None:
        self._state.save(self._run)
        self.progress = time.monotonic()

    def _carry_points(self, mlflow: "MlflowRun") -> None:
        for name, journal in self._journals:
            for points, offset in journal.batches():
                if points:
                    mlflow.log_points(points)
                    self.sent += len(points)
                if points or offset != self._state.offsets.get(name, 0):
                    self._state.sent(name, points, offset)
                    self._save()

    def _carry_parameters(self, mlflow: "MlflowRun") -> None:
        text = self._run.config_path.read_text()
        if self._state.config == _digest(text):
            return
        wanted, there = parameters(text), mlflow.parameters()
        mlflow.log_parameters({key: value for key, value in wanted.items() if key not in there})
        # MLflow keeps a parameter's first value, so a change is told beside it
        for key in sorted(there):
            now = wanted.get(key, "(not set)")
            if now != there[key]:
                self._tell(f"{key} changed: {there[key]} -> {now}")
                mlflow.set_tag(f"changed.{key}"[:250], f"{there[key][:2000]} -> {now[:2000]}")
        self._state.config = _digest(text)
        self._save()

    def _carry_status(self, mlflow: "MlflowRun", status: str) -> None:
        if not status or status == self._state.status:
            return
        if status == "RUNNING":
            mlflow.set_running()
        else:
            how = self._run.read_status()
            if how.reason:
                mlflow.set_tag("dist_trainer.reason", redact(how.reason)[:2000])
            ended = how.time if end_status(how.state) else time.time()
            mlflow.set_end(status, round(ended * 1000))
        self._state.status = status
        self._save()

    def _carry_files(self, mlflow: "MlflowRun", end: str | None) -> None:
        if self._files_failed and not end:
            return
        try:
            self._carry_text(mlflow, "config.yaml", redact_yaml(self._run.config_path.read_text()))
            self._carry_text(mlflow, "code.json", json.dumps(self._run.info().code, indent=1) + "\n")
            if end == "FINISHED":
                self._carry_plots(mlflow)
                self._carry_model(mlflow)
        except Unavailable as error:
            if end:
                raise
            self._files_failed = True  # a store for files may be broken where metrics go well
            self._tell(f"files are left for the end of the run: {error}")

    def _carry_text(self, mlflow: "MlflowRun", name: str, text: str) -> None:
        if self._state.artifacts.get(name) != _digest(text):
            mlflow.log_text(name, text)
            self._state.artifacts[name] = _digest(text)
            self._save()

    def _carry_plots(self, mlflow: "MlflowRun") -> None:
        for path in sorted((self._run.path / "plots").glob("*")):
            version = str(path.stat().st_mtime_ns)
            if self._state.artifacts.get(path.name) != version:
                mlflow.log_file(path, folder="plots")
                self._state.artifacts[path.name] = version
                self._save()

    def _carry_model(self, mlflow: "MlflowRun") -> None:
        settings = RunSettings.read(self._run)
        place, shown = settings.checkpoints, settings.checkpoints_shown
        with tempfile.TemporaryDirectory(prefix="model-", dir=self._run.path) as folder:
            try:
                carried = self._state.artifacts.get("model")
                found = final_model(place, shown=shown, carried=carried, into=Path(folder))
            except StorageError as error:
                raise Unavailable(f"the final model cannot be read: {redact(str(error))}") from error
            if found is None:
                return
            name, path = found
            self._carry_large_file(mlflow, path)
        mlflow.set_tag("dist_trainer.checkpoint", name)
        mlflow.set_tag("dist_trainer.checkpoints", redact(shown))
        self._state.artifacts["model"] = name
        self._save()

    def _carry_large_file(self, mlflow: "MlflowRun", path: Path) -> None:
        self.allowance_s = path.stat().st_size / _SLOWEST_UPLOAD_BYTES_PER_S
        try:
            mlflow.log_file(path, folder="model")
        finally:
            self.allowance_s = 0.0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
