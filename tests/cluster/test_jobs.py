"""jobs, logs, cancel and --wait's wait, with a run that a real SLURM trains."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.scheduler import requeue
from dist_trainer.slurm.submissions import Submission, add_job
from dist_trainer.slurm.wait import wait_for_end
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.project import Project, Trial

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Project:
    return Project.create(tmp_path / "project", cluster)


def row(trial: Trial) -> dict[str, Any]:
    """What `jobs --json` says of the run."""
    listing = json.loads(trial.project.command("jobs", "--all", "--json"))
    (found,) = [line for line in listing["runs"] if line["run"] == trial.run.path.name]
    return dict(found)


def in_background(trial: Trial) -> list[int]:
    """The exit code of waiting, once it is there."""
    codes: list[int] = []
    threading.Thread(target=lambda: codes.append(wait_for_end(trial.run, ask_every_s=0.5))).start()
    return codes


def test_a_run_is_told_followed_over_a_requeue_and_cancelled(project: Project) -> None:
    project.hold("evaluation")
    trial = project.submit("mine")
    codes = in_background(trial)
    command = [sys.executable, "-m", "dist_trainer.cli", "logs", "mine", "--rank", "0", "-f"]
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, text=True) as following:
        try:
            project.wait_until_reached("evaluation")
            running = row(trial)
            assert (running["state"], running["job"], running["nodes"]) == ("running", trial.job, "n[1-2]")
            assert running["step"] == 30 and running["total_steps"] == 120 and running["loss"] > 0
            assert "mine  " in project.command("jobs").splitlines()[1]
            project.let_go("evaluation")
            trial.wait_for_step(32)
            requeue(trial.job)
            project.cluster.wait_for_requeue(trial.job)
            wait_for(
                lambda: "(BeginTime)" in row(trial)["note"], timeout_s=30, what=lambda: f"hold: {row(trial)}"
            )
            held = row(trial)
            assert held["state"] in ("preempted", "requeued") and held["slurm_state"] == "PENDING"
            assert "starts again after" in held["note"] and held["attempts"] == 1
            assert f"job {trial.job} waits to go on" in project.command("logs", "mine")
            project.hold("evaluation")
            project.cluster.release(trial.job)
            project.wait_until_reached("evaluation")
            said = project.command("cancel", "mine")
            assert f"mine: job {trial.job} is told to stop; it saves first" in said
            project.let_go("evaluation")
            trial.wait_for_state("stopped")
            project.cluster.wait_for_end(trial.job)
            out, _ = following.communicate(timeout=60)
        finally:
            following.send_signal(signal.SIGINT)
    assert out.count("==>") == 2 and "attempt 2 has begun" in out
    assert out.splitlines()[-1].startswith("run mine: stopped at step")
    wait_for(lambda: codes, timeout_s=30, what=lambda: "the wait to end")
    assert codes == [75]
    assert row(trial)["state"] == "stopped" and row(trial)["attempts"] == 2
    assert "job" in project.command("logs", "mine", "--rank", "agent")
    assert "nothing to cancel" in project.command("cancel", "mine")


def test_a_pending_job_says_why_and_is_taken_out(project: Project) -> None:
    with project.cluster.urgent_job() as urgent:
        project.cluster.wait_for_state(urgent, "RUNNING")
        trial = project.submit("mine")
        codes = in_background(trial)
        wait_for(lambda: row(trial)["slurm_reason"], timeout_s=30, what=lambda: "a reason")
        waits = row(trial)
        assert waits["state"] == "pending" and waits["slurm_reason"] in waits["note"]
        assert "has not begun yet (pending)" in project.command("logs", "mine")
        assert "taken out of the queue" in project.command("cancel", "mine")
    assert row(trial)["state"] == "stopped"
    wait_for(lambda: codes, timeout_s=30, what=lambda: "the wait to end")
    assert codes == [75]


def test_a_job_that_ends_without_a_word_of_the_run_is_told_as_slurm_tells_it(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.command("prepare", "train.yaml", "name=mine")
    trial = Trial(project, RunFolder.open(project.folder / "runs" / "mine"))
    add_job(trial.run, Submission(project.cluster.submit("exit 3")))
    assert wait_for_end(trial.run, ask_every_s=0.5) == 1
    assert "SLURM says FAILED, NonZeroExitCode" in capsys.readouterr().err
    told = row(trial)
    assert (told["state"], told["slurm_state"]) == ("lost", "FAILED")
