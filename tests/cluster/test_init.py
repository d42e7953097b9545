"""`dist-trainer init` where there is a SLURM: the profile is of that cluster, and a job with it trains."""

import json
from pathlib import Path

import pytest

from dist_trainer.config.load import load_config
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.project import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
SHORT = ("train.epochs=null", "train.steps=20", "train.eval_every_epochs=null", "tracking.uri=null")


def test_a_new_project_is_submitted_with_the_profile_of_this_cluster(
    tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", cluster)
    found = json.loads(project.command("init", "--json"))
    assert "slurm.yaml" in found["files"]
    profile = (project.folder / "slurm.yaml").read_text()
    assert f"of {len(NODES)};" in profile and "short_grace" in profile and "urgent" in profile
    files = [str(project.folder / name) for name in ("train.yaml", "slurm.yaml")]
    config = load_config(files).config
    assert (config.slurm.partition, config.slurm.nodes, config.slurm.time) == ("main", 1, "1-00:00:00")
    assert config.slurm.options["cpus-per-task"] == 2
    said = project.command("submit", "train.yaml", "slurm.yaml", *SHORT, "--wait", "--json", timeout_s=200)
    shown = json.loads(said)
    cluster.adopt(shown["job"])
    assert (shown["state"], shown["exit_code"]) == ("finished", 0)
