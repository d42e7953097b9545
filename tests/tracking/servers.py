"""A real MLflow server on a port of its own, and what a run looks like in a store."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.follower import carry_once
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.mlflow_sync import reach
from tests.launchers.processes import wait_for

LOSSES = [(step, 1 / (step + 1)) for step in range(100_000)]
CONFIG = """\
name: {name}
optimizer: {{target: torch.optim.SGD, lr: 0.05}}
tracking: {{uri: "{uri}", experiment: tests}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`mlflow server` on sqlite in `folder`; can be killed, frozen and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        arguments = f"server --host 127.0.0.1 --port {self.port} --workers 1".split()
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *arguments, *store, *artifacts],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        wait_for(self._is_up)
        return self

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """To the server and its workers, which are in its session."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)


def make_run(folder: Path, uri: str, *, name: str = "mine", config: str = CONFIG) -> RunFolder:
    return RunFolder.create(folder / "runs" / name, config.format(uri=uri, name=name), working_folder=folder)


def train(run: RunFolder, first: int, last: int, *, pause_s: float = 0.0, attempt: int = 1) -> None:
    """What a worker leaves on disk: a metric at each step in [first, last)."""
    heart = Heartbeat(run.heartbeat_path(0), rank=0, attempt=attempt)
    with Journal(run.journal_path(0), attempt=attempt, rank=0) as journal:
        for step in range(first, last):
            heart.beat(step, "train")
            journal.metrics(step, {"train/loss": 1 / (step + 1), "samples_per_s": 100.0 + attempt})
            time.sleep(pause_s)
    heart.close()


def finish(run: RunFolder, state: Any = "finished", reason: str = "") -> None:
    run.write_status(Status(state, reason))


def carry(run: RunFolder) -> int:
    """As `sync` does, without the seconds that a process takes to import mlflow."""
    problem, sent = carry_once(run, connect=reach)
    assert problem == ""
    return sent


def log(run: RunFolder) -> str:
    return (run.path / "logs" / "mlflow-sync.log").read_text()


def checkpoint(run: RunFolder, name: str, content: bytes) -> None:
    step, fence = (int(part.lstrip("stepf-")) for part in name.rsplit("-", 1))
    store = CheckpointStore(Storage(run.checkpoints), fence=fence, highest_fence=lambda: fence)
    assert store.commit(step, {"model.safetensors": content}, {}).name == name


class Stored:
    """The run as MLflow has it."""

    def __init__(self, run: RunFolder, uri: str) -> None:
        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        tag = f"tags.`dist_trainer.run_id` = '{run.info().run_id}'"
        experiments = [item.experiment_id for item in self._client.search_experiments()]
        (self.run,) = self._client.search_runs(experiments, tag)
        assert self.run.info.run_id == run.info().mlflow_run_id
        self.status: str = self.run.info.status
        self.params: dict[str, str] = self.run.data.params
        self.tags: dict[str, str] = self.run.data.tags

    def points(self, key: str) -> list[tuple[int, float]]:
        history = self._client.get_metric_history(self.run.info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def files(self, folder: str | None = None) -> dict[str, int]:
        found = self._client.list_artifacts(self.run.info.run_id, folder)
        return {item.path: item.file_size for item in found if item.file_size is not None}

    def text(self, path: str) -> str:
        # not through mlflow, whose threads for downloads stay
        query = f"run_uuid={self.run.info.run_id}&path={path}"
        with urllib.request.urlopen(f"{self._uri}/get-artifact?{query}") as answer:
            content: bytes = answer.read()
        return content.decode()
