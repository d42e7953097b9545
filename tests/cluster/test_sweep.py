"""A sweep as one array job on the real cluster: a cell that fails, one that is preempted, one that is cancelled."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import last_job
from tests.cluster.cluster import Cluster
from tests.cluster.project import STEPS, Project, Trial

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
ONE_NODE = ("slurm.nodes=1", "slurm.options.cpus-per-task=1")


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> Iterator[Project]:
    yield Project.create(tmp_path / "project", cluster)


def begin(project: Project, *words: str) -> list[Trial]:
    """Submit a sweep called grid; its cells."""
    project.command("sweep", "train.yaml", *words, *ONE_NODE, "--name", "grid", "name=grid")
    return cells(project)


def cells(project: Project) -> list[Trial]:
    found = [
        Trial(project, RunFolder.open(path.parent)) for path in project.folder.glob("runs/grid-0*/run.json")
    ]
    found.sort(key=lambda trial: trial.run.path.name)
    for trial in found:
        project.cluster.adopt(trial.job.partition("_")[0])
    return found


def states(project: Project) -> list[str]:
    found: dict[str, Any] = json.loads(project.command("sweep", "status", "grid", "--json"))
    return [row["state"] for row in found["cells"]]


def in_mlflow(project: Project) -> tuple[dict[str, str], set[str]]:
    """Each run's status by its name, and the names of the parents that the others have."""
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs").fetchall()
        tags = database.execute("select value from tags where key = 'mlflow.parentRunId'").fetchall()
    names = {run: name for run, name, _ in runs}
    assert len(names) == len(set(names.values())) == len(tags) + 1, "one parent, and its children"
    return {name: status for _, name, status in runs}, {names[parent] for (parent,) in tags}


def test_cells_fail_and_are_preempted_each_on_its_own_and_resume_runs_what_is_missing(
    project: Project, cluster: Cluster
) -> None:
    slow = "data.train.sample_s=0.04"
    trials = begin(project, slow, "--grid", "model.fail='',broken", "--grid", "seed=0:2")
    job = trials[0].job.partition("_")[0]
    assert [trial.job for trial in trials] == [f"{job}_{index}" for index in range(4)]
    for trial in trials[2:]:
        assert cluster.wait_for_end(trial.job, timeout_s=90) == "FAILED"
    trials[0].wait_for_step(20)
    cluster.preempt(trials[0].job)
    for trial in trials[:2]:
        trial.finish()
    assert trials[0].requeues == ["preempted"], trials[0].told()
    assert states(project) == ["finished", "finished", "failed", "failed"]
    failed = {f"grid-000{index}": "FINISHED" if index < 2 else "FAILED" for index in range(4)}
    assert in_mlflow(project) == ({"grid": "FAILED", **failed}, {"grid"})
    printed = project.command("logs", "grid-0002")
    assert "broken" in printed, printed
    recipe = project.folder / "recipe.py"
    recipe.write_text(recipe.read_text().replace("if self.fail:", "if False:"))
    project.command("sweep", "resume", "grid")
    script = (project.folder / "runs" / "grid" / "slurm" / "0002.sbatch").read_text()
    assert "#SBATCH --array=2-3\n" in script
    for trial in cells(project)[2:]:
        trial.finish()
    assert in_mlflow(project)[0] == {"grid": "FINISHED", **dict.fromkeys(failed, "FINISHED")}
    best = json.loads(project.command("sweep", "best", "grid", "--json"))
    assert [row["step"] for row in best["cells"]] == [STEPS] * 4


def test_one_cell_is_cancelled_and_run_again_alone(project: Project, cluster: Cluster) -> None:
    first, second = begin(project, "data.train.sample_s=0.03", "--grid", "seed=0:2", "--parallel", "1")
    first.wait_for_step(10)
    assert cluster.state(second.job) == "PENDING"
    assert states(project) == ["running", "pending"]
    refused = project.command("sweep", "resume", "grid")
    assert "2 cells are being run already" in refused
    project.command("cancel", "grid-0000")
    first.wait_for_state("stopped")
    second.finish()
    assert states(project) == ["stopped", "finished"]
    status, _ = in_mlflow(project)
    assert status == {"grid": "KILLED", "grid-0000": "KILLED", "grid-0001": "FINISHED"}
    project.command("sweep", "resume", "grid")
    again, _ = cells(project)
    assert again.job != first_job(second) + "_0"
    again.finish()
    assert states(project) == ["finished", "finished"]
    assert in_mlflow(project)[0]["grid"] == "FINISHED"


def first_job(trial: Trial) -> str:
    submission = last_job(trial.run)
    assert submission is not None
    return submission.job.partition("_")[0]


def test_what_slurm_refuses_leaves_nothing_behind(project: Project) -> None:
    words = ("sweep", "train.yaml", "name=grid", "--grid", "seed=0:2")
    said = project.command(*words, "slurm.partition=nowhere", code=2)
    assert "slurm.partition" in said and "nowhere" in said
    said = project.command(*words, "slurm.options.qoss=x", code=2)
    assert "slurm.options.qoss" in said and "did you mean qos" in said
    assert not (project.folder / "runs").exists()


def test_a_dry_run_prints_the_script_and_sends_nothing(project: Project, cluster: Cluster) -> None:
    said = project.command(
        "sweep", "train.yaml", "name=grid", "--grid", "seed=0:3", "--dry-run", "--parallel", "2"
    )
    assert "#SBATCH --array=0-2%2" in said
    assert "dist_trainer.slurm.task --sweep" in said
    assert said.endswith("3 cells for SLURM; nothing was made or started\n")
    assert not (project.folder / "runs").exists()
