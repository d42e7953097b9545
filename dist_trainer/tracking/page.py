"""Where a run's page in MLflow is, for a person."""

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from dist_trainer.config.redact import redact
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.sync_state import SyncState


def page_command(run: RunFolder) -> str:
    """How to see the run in MLflow: its URL on a server, else the command that shows the store."""
    settings = RunSettings.read(run)
    if settings.uri is None:
        return ""
    if not settings.is_server:
        if importlib.util.find_spec("mlflow") is None:
            return f"mlflow is not installed; the metrics are in {run.journal_path(0)}"
        beside = Path(sys.executable).with_name("mlflow")
        program = "mlflow" if shutil.which("mlflow") or not beside.exists() else str(beside)
        return f"{program} ui --backend-store-uri {shlex.quote(redact(settings.uri))}"
    state = SyncState.load(run)
    page = f"/#/experiments/{state.experiment}/runs/{state.mlflow_run}" if state.mlflow_run else ""
    return redact(settings.uri.rstrip("/")) + page
