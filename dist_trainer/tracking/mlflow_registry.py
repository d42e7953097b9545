"""The process that puts an export into MLflow's model registry, linked to the run's own MLflow run.

python -m dist_trainer.tracking.mlflow_registry RUN FOLDER NAME

The files go to export/<format>-<12 digits of their digest> among the run's artifacts: what a version stands for is
never written over, and `mlflow artifacts download -u models:/NAME/VERSION` gives those very files.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters.interpreter import importing, leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.follower import Busy, carrying
from dist_trainer.tracking.mlflow_sync import MlflowRun, reach
from dist_trainer.tracking.settings import RunSettings

_TIMEOUT_S = 30.0
_PATIENCE_S = 60.0  # a process that carries a run imports mlflow first
_SLOWEST_UPLOAD_BYTES_PER_S = 2e6
_TAG = "dist_trainer."


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `run_id` is MLflow's."""

    name: str
    version: str
    run_id: str

    @property
    def uri(self) -> str:
        """By which MLflow's tools name it."""
        return f"models:/{self.name}/{self.version}"

    @property
    def words(self) -> str:
        """What a person is told."""
        return f"registered as {self.name}, version {self.version}: mlflow artifacts download -u {self.uri}"

    @property
    def as_document(self) -> dict[str, str]:
        """All of it, for a program."""
        return {**asdict(self), "uri": self.uri}


def check_registry(run: RunFolder) -> None:
    """UsageError where there is no MLflow to put anything into."""
    if RunSettings.read(run).uri is None:
        raise UsageError(
            f"--register: tracking.uri is null in {run.config_path}, so there is no MLflow with a registry"
        )
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError("--register: mlflow is not installed; pip install mlflow")


def register(run: RunFolder, folder: Path, name: str) -> Registered:
    """Put the files in `folder`, which an export wrote, into the registry as the next version of `name`.

    Raises DistTrainerError where MLflow does not take them; the files stay where they are.
    """
    command = [sys.executable, "-m", __name__, str(run.path), str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"problem": redact(done.stderr.strip()[-2000:])}
    if "problem" in found:
        raise DistTrainerError(
            f"--register {name}: MLflow did not take it: {found['problem']}; the exported files stay in {folder}"
        )
    return Registered(**found)


def put(run: RunFolder, folder: Path, name: str) -> Registered:
    """What the process does; whatever MLflow raises comes out."""
    from mlflow import MlflowClient, MlflowException

    card = json.loads((folder / "export.json").read_text())
    paths = [folder / "export.json", *(folder / each for each in card["files"])]
    size = sum(path.stat().st_size for path in paths)
    mlflow = _reached(run, _TIMEOUT_S + size / _SLOWEST_UPLOAD_BYTES_PER_S)
    place = f"export/{card['exported_as']}-{_digest(paths)}"
    for path in paths:
        mlflow.log_file(path, place)
    client = MlflowClient(tracking_uri=RunSettings.read(run).uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    artifacts = client.get_run(mlflow.run_id).info.artifact_uri
    version = client.create_model_version(
        name, f"{artifacts}/{place}", mlflow.run_id, tags=_tags(card), description=_description(card)
    )
    return Registered(name, str(version.version), mlflow.run_id)


def _reached(run: RunFolder, timeout_s: float) -> MlflowRun:
    """The run's own MLflow run. Whoever carries the run makes it: where that is another process, it is waited for."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with carrying(run, patience_s=0.5):
                return reach(run, timeout_s)
        except Busy:
            if run.info().mlflow_run_id is not None or time.monotonic() > deadline:
                return reach(run, timeout_s, may_create=False)


def _digest(paths: list[Path]) -> str:
    hasher = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()[:12]


def _tags(card: dict[str, Any]) -> dict[str, str]:
    named = ("run", "run_id", "step", "checkpoint", "checkpoint_sha256", "exported_as")
    return {f"{_TAG}{name}": str(card[name]) for name in named}


def _description(card: dict[str, Any]) -> str:
    return f"{card['run']}: step {card['step']} as {card['exported_as']}; see export.json among its files"


def main(run_folder: str, folder: str, name: str) -> None:
    """The process itself: one line of JSON."""
    keep_private()
    kill_me_with_my_parent()  # what it was given to upload is no use then: no version names it
    warnings.simplefilter("ignore")  # mlflow's imports; nobody can act on them
    run = RunFolder.open(run_folder)
    database = RunSettings.read(run).database
    os.chdir(database.parent if database and database.parent.is_dir() else run.info().working_folder)
    try:
        with importing():
            importlib.import_module("mlflow")
        found = asdict(put(run, Path(folder), name))
    except Exception as error:  # mlflow, requests, sqlalchemy, boto: whatever it is, the files stay
        said = str(error).splitlines() or [type(error).__name__]
        found = {"problem": redact(said[0][:500])}
    print(json.dumps(found), flush=True)
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
