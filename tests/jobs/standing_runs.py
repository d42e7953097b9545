"""Runs as jobs and agents leave them, written by hand: for what only looks at them."""

import json
import time
from pathlib import Path

from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.submissions import Submission, add_job
from dist_trainer.tracking.heartbeat import Heartbeat


class StandingRuns:
    """Makes runs below one folder; times are seconds ago."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"
        self.now = time.time()

    def make(self, name: str, *, job: str | None = None, status: Status | None = None) -> RunFolder:
        """A run, submitted as `job` two hours ago."""
        run = RunFolder.create(self.folder / name, f"name: {name}\n", working_folder=self.folder.parent)
        if job is not None:
            self.submit(run, job)
        if status is not None:
            run.write_status(status)
        return run

    def submit(self, run: RunFolder, job: str, ago: float = 7200) -> None:
        """Its folder says that it was given to this job."""
        add_job(run, Submission(job, nodes=2, script="slurm/0001.sbatch", time=self.now - ago))

    def start(self, run: RunFolder, *, attempt: int = 1, job: str | None = None, ago: float = 3000) -> None:
        """An attempt has begun on two nodes."""
        line = {"event": "start", "attempt": attempt, "time": self.now - ago, "nodes": ["n1", "n2"]}
        run.record({**line, "job": job, "restart": attempt - 1, "first_step": 0, "world_size": 2})
        path = run.log_path(attempt, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"rank 0 of attempt {attempt}\n")

    def end(self, run: RunFolder, cause: str, *, attempt: int = 1, ago: float = 100, code: int = 0) -> None:
        """It has ended at step 812."""
        line = {"event": "end", "attempt": attempt, "time": self.now - ago, "last_step": 812}
        run.record({**line, "cause": cause, "exit_code": code})

    def requeue(self, run: RunFolder, cause: str, job: str) -> None:
        """Its job went back into the queue, saved at step 800."""
        line = {"event": "requeue", "attempt": 1, "time": self.now - 90, "job": job, "cause": cause}
        run.record({**line, "step": 800, "excluded": ["n2"], "says": f"the job is {cause}"})

    def train(self, run: RunFolder, *, step: int = 1200, total: int = 5000, attempt: int = 1) -> None:
        """Rank 0 is at `step`, after ten steps in 6 s each time."""
        started = {"kind": "started", "total_steps": total, "attempt": attempt, "time": self.now - 90}
        lines = [
            {
                "kind": "metrics",
                "step": step - 90 + 10 * number,
                "values": {"train/loss": 0.42134},
                "time": self.now - 60 + 6 * number,
                "attempt": attempt,
            }
            for number in range(10)
        ]
        text = "".join(json.dumps(line) + "\n" for line in [started, *lines])
        run.journal_path(0).write_text(text)
        beat = Heartbeat(run.heartbeat_path(0), rank=0, attempt=attempt)
        beat.beat(step, "train")
        beat.close()

    def slurm_time(self, ahead: float) -> str:
        """A moment as SLURM writes it."""
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.now + ahead))
