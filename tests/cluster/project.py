"""A user's project folder on the cluster, and the runs that are submitted from it."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.config.load import read_config
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import last_job
from dist_trainer.tracking.heartbeat import read_heartbeat
from tests.cluster.cluster import Cluster, wait_for

HERE = Path(__file__).parent
CONFIG = """
model: {target: recipe.Net}
data:
  train: {target: recipe.Points, phase: data, sample_s: 0.01}
  val: {target: recipe.Points, phase: evaluation, length: 21}
  test: {target: recipe.Points, phase: test, length: 21}
  global_batch_size: 6
loss: {target: torch.nn.CrossEntropyLoss}
metrics: {accuracy: {target: dist_trainer.training.metrics.Accuracy}}
optimizer: {target: torch.optim.SGD, lr: 0.05, momentum: 0.9}
scheduler: {target: torch.optim.lr_scheduler.CosineAnnealingLR}
train: {epochs: 12, eval_every_epochs: 3}
checkpoint: {every_steps: 1000}
tracking: {log_every_steps: 1}
launch: {device: cpu, workers_per_node: 1, timeout_s: 30}
slurm: {nodes: 2, partition: main, time: 10, options: {cpus-per-task: 2}}
"""
STEPS = 120


@dataclass
class Project:
    """The folder that commands are given in."""

    folder: Path
    cluster: Cluster

    @classmethod
    def create(cls, folder: Path, cluster: Cluster) -> "Project":
        """A folder with a module of the user's own and a configuration."""
        folder.mkdir()
        shutil.copy(HERE / "recipe.py", folder / "recipe.py")
        (folder / "train.yaml").write_text(CONFIG)
        return cls(folder, cluster)

    def command(self, *words: str, code: int = 0, timeout_s: float = 120) -> str:
        """What `dist-trainer WORDS` prints; it must end with `code`."""
        command = [sys.executable, "-m", "dist_trainer.cli", *words]
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"dist-trainer {' '.join(words)}: {done.returncode}\n{said}"
        return said

    def submit(self, name: str, *words: str) -> "Trial":
        """Submit the configuration as a run of this name."""
        self.command("submit", "train.yaml", f"name={name}", *words)
        trial = Trial(self, RunFolder.open(self.folder / "runs" / name))
        self.cluster.adopt(trial.job)
        return trial

    def hold(self, phase: str) -> None:
        """Let the phase, once it is reached, last until `let_go`."""
        (self.folder / f"hold-{phase}").touch()

    def let_go(self, phase: str) -> None:
        """End what `hold` began."""
        (self.folder / f"hold-{phase}").unlink()
        (self.folder / f"reached-{phase}").unlink(missing_ok=True)

    def hurry(self) -> None:
        """From now on samples are not slow any more: what the test waited for is over."""
        (self.folder / "hurry").touch()

    def wait_until_reached(self, phase: str) -> None:
        """Return when some rank waits in the phase."""
        reached = self.folder / f"reached-{phase}"
        wait_for(reached.exists, timeout_s=60, what=lambda: f"{phase} to be reached")


@dataclass
class Trial:
    """One submitted run."""

    project: Project
    run: RunFolder

    @property
    def job(self) -> str:
        """The newest job's id."""
        submission = last_job(self.run)
        assert submission is not None
        return submission.job

    @property
    def step(self) -> int:
        """Rank 0's last step."""
        beat = read_heartbeat(self.run.heartbeat_path(0))
        return beat.step if beat else 0

    def wait_for_step(self, step: int) -> None:
        """Return when rank 0 has got there."""
        wait_for(lambda: self.step >= step, timeout_s=60, what=lambda: f"step {step} of {self.told()}")

    def wait_for_state(self, *states: str, timeout_s: float = 90) -> None:
        """Return when status.json says one of these."""
        wait_for(
            lambda: self.run.read_status().state in states,
            timeout_s=timeout_s,
            what=lambda: f"{states}: {self.told()}",
        )

    def finish(self, *, timeout_s: float = 120) -> None:
        """Wait for the end of the job, wherever it is; it must have finished the run. Samples hurry from now on."""
        self.project.hurry()
        cluster = self.project.cluster
        if int(cluster.show(self.job)["Restarts"]) > 0:
            cluster.release(self.job)
        state = cluster.wait_for_end(self.job, timeout_s=timeout_s)
        assert state == "COMPLETED", self.told()
        assert self.run.read_status().state == "finished", self.told()
        assert self.run.read_status().step == STEPS

    @property
    def weights(self) -> str:
        """A digest of the final model."""
        store = open_store(self.run, read_config(self.run.config_path).checkpoint)
        newest = store.list()[0]
        assert newest.step == STEPS, newest
        return hashlib.sha256(store.read(newest)["model.safetensors"]).hexdigest()

    @property
    def results(self) -> dict[str, float]:
        """The final metrics."""
        return self.run.read_status().results

    @property
    def causes(self) -> list[str]:
        """How each attempt ended, in order."""
        ends = [line for line in self.run.attempts() if line["event"] == "end"]
        return [line["cause"] for line in sorted(ends, key=lambda line: line["attempt"])]

    @property
    def requeues(self) -> list[str]:
        """Why the job was given back, each time."""
        return [line["cause"] for line in self.run.attempts() if line["event"] == "requeue"]

    def mlflow_runs(self) -> list[tuple[str, str]]:
        """Name and status of every run in MLflow's database that is this one."""
        with sqlite3.connect(self.project.folder / "mlflow.db") as database:
            rows = database.execute("select name, status from runs where name = ?", [self.run.path.name])
            return [(str(name), str(status)) for name, status in rows]

    def told(self) -> str:
        """Everything that the job and the run said, for a failed assertion."""
        logs = sorted((self.run.path / "slurm").glob("*.out")) + sorted(self.run.path.glob("logs/*/*.log"))
        texts = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs]
        attempts = [json.dumps(line) for line in self.run.attempts()]
        return "\n".join([*texts, *attempts, str(self.run.read_status())])


def looks_untouched(trial: Trial, reference: dict[str, Any]) -> None:
    """The same weights and results as an untouched run, in one MLflow run."""
    assert trial.weights == reference["weights"], trial.told()
    assert trial.results == reference["results"]
    assert trial.mlflow_runs() == [(trial.run.path.name, "FINISHED")]
