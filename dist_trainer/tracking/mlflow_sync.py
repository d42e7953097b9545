"""The process that carries a run to MLflow, and never in training's way; the registry is mlflow_registry.py's.

python -m dist_trainer.tracking.mlflow_sync RUN          beside training, until it is over (see `start`)
python -m dist_trainer.tracking.mlflow_sync RUN --once   what is there now (see `sync`)
"""

import argparse
import getpass
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters.file_lock import hold
from dist_trainer.adapters.files import open_log
from dist_trainer.adapters.interpreter import importing, leave
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.carrier import Unavailable
from dist_trainer.tracking.follower import carry_once, follow
from dist_trainer.tracking.page import page_command
from dist_trainer.tracking.parameters import mlflow_name
from dist_trainer.tracking.run_end import RunEnd, end_status
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.sweep_parent import join_sweep
from dist_trainer.tracking.sync_state import Point, SyncState, count_left

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Where two processes a core are busy, importing mlflow takes 12 s at 5, half a minute at 10, and minutes at 19; what
# is left to do then is little, and is to cost training nothing.
_WHILE_STARTING, _WHILE_CARRYING = 5, 19
_RUN_TAG = "dist_trainer.run_id"


@dataclass(frozen=True)
class SyncReport:
    """What `sync` carried (metric points), what is left, where to look, and what stood in the way."""

    sent: int
    left: int
    url: str
    problem: str = ""


def start(
    run: RunFolder, *, before: Status | None = None, sample_every_s: float = 10.0
) -> "subprocess.Popen[bytes] | None":
    """Start the process beside training. None where there is nothing to do: tracking.uri is null, or mlflow is
    not installed. `before`: the status that an earlier attempt left, where this one may have ended already.

    It ends by itself: when status.json has an end or its parent is gone, and MLflow has everything or is
    silent for 10 s. The signals that stop training don't reach it.
    """
    if RunSettings.read(run).uri is None or importlib.util.find_spec("mlflow") is None:
        return None
    status = before or run.read_status()
    arguments = [str(run.path), f"--parent={os.getpid()}", f"--sample-every-s={sample_every_s}"]
    if end_status(status.state):
        arguments.append(f"--stale-s={status.time!r}")
    # blocked signals stay blocked over exec: none gets through before the process ignores them
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        null = subprocess.DEVNULL  # standard output: mlflow prints the tracking URL there, secrets and all
        with open_log(run.path / "logs" / "mlflow-sync.log") as output:
            return subprocess.Popen(_command(*arguments), stdin=null, stdout=null, stderr=output)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def sync(run: RunFolder, *more: RunFolder) -> SyncReport:
    """Carry what MLflow has not yet, of runs of one store in one process. UsageError where none tracks the run."""
    if RunSettings.read(run).uri is None:
        raise UsageError(f"tracking.uri is null in {run.config_path}: there is no MLflow to carry it to")
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError("mlflow is not installed; pip install mlflow")
    paths = [str(each.path) for each in (run, *more)]
    done = subprocess.run(_command("--once", *paths), capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise DistTrainerError(f"the MLflow process failed: {redact(done.stderr.strip()[-2000:])}")
    reports = [SyncReport(**json.loads(line)) for line in lines[-len(paths) :]]
    return next((report for report in reports if report.problem), reports[-1])


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dist_trainer.tracking.mlflow_sync", *arguments]


class MlflowRun:
    """One run in an MLflow store. Every method raises Unavailable where the store does not take it."""

    def __init__(self, run: RunFolder, settings: RunSettings, *, may_create: bool = True) -> None:
        with importing():
            from mlflow import MlflowClient

        with _reaching():
            if settings.database:
                _create_database(settings.database)
            self._client = MlflowClient(tracking_uri=settings.uri)
            found = self._find(run, settings) or (self._create(run, settings) if may_create else None)
        if found is None:
            raise Unavailable("the run is not in MLflow yet, and the process that carries it makes it")
        if found.info.lifecycle_stage != "active":
            raise Unavailable(f"MLflow run {found.info.run_id} was deleted; restore it in MLflow to go on")
        self.run_id: str = found.info.run_id
        self.experiment_id: str = found.info.experiment_id
        if run.info().mlflow_run_id != self.run_id:
            run.update_info(mlflow_run_id=self.run_id)
        with _reaching():
            self._sweep = join_sweep(run, self._client, found, _user())

    def log_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        with _reaching():
            self._client.log_batch(self.run_id, metrics=metrics)

    def parameters(self) -> dict[str, str]:
        with _reaching():
            return dict(self._client.get_run(self.run_id).data.params)

    def log_parameters(self, parameters: dict[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in parameters.items()]
        for first in range(0, len(items), 100):  # MLflow's limit
            with _reaching():
                self._client.log_batch(self.run_id, params=items[first : first + 100])

    def set_tag(self, key: str, value: str) -> None:
        with _reaching():
            self._client.set_tag(self.run_id, key, value)

    def set_running(self) -> None:
        with _reaching():
            self._client.update_run(self.run_id, status="RUNNING")
            self._report()

    def set_end(self, status: str, time_ms: int) -> None:
        with _reaching():
            self._client.set_terminated(self.run_id, status, time_ms)
            self._report()

    def _report(self) -> None:
        if self._sweep is not None:
            self._sweep.report()

    def log_text(self, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_text(text)
            self.log_file(path)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        with _reaching():
            self._client.log_artifact(self.run_id, str(path), folder)

    def _find(self, run: RunFolder, settings: RunSettings) -> Any:
        from mlflow import MlflowException

        if known := run.info().mlflow_run_id:
            try:
                return self._client.get_run(known)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        # one whose answer was lost carries our tag
        experiment = self._experiment(settings)
        query = f"tags.`{_RUN_TAG}` = '{run.info().run_id}'"
        runs = self._client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    def _create(self, run: RunFolder, settings: RunSettings) -> Any:
        info = run.info()
        tags = {_RUN_TAG: info.run_id, "dist_trainer.run_folder": str(run.path), "mlflow.user": _user()}
        if commit := info.code.get("commit"):
            tags["mlflow.source.git.commit"] = commit
        created_ms = round(info.created * 1000)
        experiment = self._experiment(settings)
        return self._client.create_run(experiment, created_ms, tags=tags, run_name=settings.name)

    def _experiment(self, settings: RunSettings) -> str:
        from mlflow import MlflowException

        name = settings.experiment
        location = None
        if settings.database:
            location = (settings.database.parent / "mlartifacts" / mlflow_name(name)).as_uri()
        for _ in range(2):  # of runs that start at once one creates it and the others find it
            if found := self._client.get_experiment_by_name(name):
                if found.lifecycle_stage != "active":
                    raise Unavailable(
                        f"experiment {name} was deleted; restore it, or set tracking.experiment"
                    )
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise Unavailable(f"experiment {name} can be neither created nor found")


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:  # mlflow, requests, sqlalchemy, boto: whatever it is, the data stays on disk
        raise Unavailable(redact(f"{type(error).__name__}: {error}"[:500])) from error


def _create_database(path: Path) -> None:
    """Create a sqlite store by one process and all at once: two together break it, and so does a kill."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    held = f"{path} is being created by another process"
    with hold(path.with_name(f"{path.name}.lock"), held=lambda owner: Unavailable(held), patience_s=60):
        if path.exists() and path.stat().st_size:
            return
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return str(os.getuid())


def reach(run: RunFolder, timeout_s: float, *, may_create: bool = True) -> MlflowRun:
    """The run in its store; without `may_create` Unavailable where another process has to put it there."""
    # mlflow reads these at each request; its own retries would block for minutes
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(round(timeout_s))
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return MlflowRun(run, RunSettings.read(run), may_create=may_create)


def main() -> int:
    """The process itself."""
    keep_private()
    parser = argparse.ArgumentParser(prog="mlflow_sync", description=__doc__)
    parser.add_argument("runs", type=RunFolder.open, nargs="+")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--stale-s", type=float)
    parser.add_argument("--sample-every-s", type=float, default=10.0)
    arguments = parser.parse_args()
    database = RunSettings.read(run := arguments.runs[0]).database
    # mlflow names folders beside a new database after the current one
    os.chdir(database.parent if database and database.parent.is_dir() else run.info().working_folder)
    warnings.simplefilter("ignore")  # mlflow's imports; nobody can act on them
    if arguments.once:
        for run in arguments.runs:
            problem, sent = carry_once(run, connect=reach)
            left = count_left(run, SyncState.load(run))
            print(json.dumps(asdict(SyncReport(sent, left, page_command(run), problem))), flush=True)
        return 0
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    os.nice(_WHILE_STARTING)
    end = RunEnd(run, parent=arguments.parent, stale_s=arguments.stale_s)
    with importing():
        importlib.import_module("mlflow")  # takes seconds, which are not MLflow's silence

    def connect(run: RunFolder, timeout_s: float) -> MlflowRun:
        connected = reach(run, timeout_s)
        os.nice(_WHILE_CARRYING - os.nice(0))
        return connected

    follow(run, end, connect=connect, sample_every_s=arguments.sample_every_s)
    return 0


if __name__ == "__main__":
    leave(main())
