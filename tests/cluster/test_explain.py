"""explain and the word of a real SLURM: how a job ended that said nothing itself, or why it waits."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import Submission, add_job
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.project import Project

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Project:
    return Project.create(tmp_path / "project", cluster)


def explained(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.command("explain", "mine", "--json"))
    return found


def test_how_a_job_ended_that_died_without_a_word(project: Project) -> None:
    project.command("prepare", "train.yaml", "name=mine")
    run = RunFolder.open(project.folder / "runs" / "mine")
    job = project.cluster.submit("exit 3")
    add_job(run, Submission(job))
    assert project.cluster.wait_for_end(job) == "FAILED"
    found = explained(project)
    assert (found["state"], found["slurm"]["state"]) == ("lost", "FAILED")
    assert "failed" in found["sentence"] and found["next"] == "dist-trainer submit runs/mine/config.yaml"
    job = project.cluster.submit("sleep 300", "--no-requeue", "--nodelist=n2")
    add_job(run, Submission(job))
    project.cluster.wait_for_state(job, "RUNNING")
    with project.cluster.node_down("n2"):
        assert project.cluster.wait_for_end(job) == "NODE_FAIL"
        found = explained(project)
        assert found["slurm"]["state"] == "NODE_FAIL" and "a node failed" in found["sentence"]


def test_a_preempted_job_that_waits_is_told_as_one(project: Project) -> None:
    trial = project.submit("mine")
    trial.wait_for_step(12)
    project.cluster.preempt(trial.job)
    told = lambda: project.command("explain", "mine")  # noqa: E731
    wait_for(lambda: explained(project)["state"] == "waiting", timeout_s=30, what=told)
    found = explained(project)
    assert (
        found["sentence"].startswith(("preempted: ", "requeued: ")) and found["slurm"]["state"] == "PENDING"
    )
    assert found["next"] == "dist-trainer logs mine -f" and found["saved"]["step"] >= 12
