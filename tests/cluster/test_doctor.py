"""`dist-trainer doctor --slurm` on real nodes: of a job of its own, and where they do not see the folder of runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import NODES, Cluster, slurm

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "slurm" / "local.yaml"
pytestmark = pytest.mark.timeout(180)


def doctor(folder: Path, *words: str, inside: str = "") -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "dist_trainer.cli", "doctor", str(PROFILE), "--slurm", "--json", *words]
    if inside:  # a mount that no node has
        command = ["unshare", "-m", "bash", "-c", f'{inside} && exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=150)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def states(found: dict[str, Any], name: str) -> dict[str, str]:
    return {",".join(each["nodes"]): each["state"] for each in found["findings"] if each["name"] == name}


def test_every_node_is_examined_and_they_are_compared(cluster: Cluster) -> None:
    code, found, _ = doctor(cluster.folder)
    assert code == 0, found
    for name in ("python", "torch", "run folder", "signals", "nodes over lo"):
        assert states(found, name) == dict.fromkeys(NODES, "fine"), (name, found)
    shared = ("shared files", "shared locks", "shared creates", "nodes", "nodes' clocks", "nodes' versions")
    for name in (*shared, "SLURM", "partition", "preemption"):
        assert states(found, name) == {"": "fine"}, (name, found)
    assert list(cluster.folder.iterdir()) == []
    assert "dist-trainer-doctor" not in slurm(
        "squeue", "--noheader", "--format=%j", "--states=RUNNING,PENDING"
    )


def test_nodes_that_do_not_see_the_folder_of_runs_are_named(cluster: Cluster) -> None:
    place = cluster.folder / "here-alone"
    place.mkdir()
    code, found, _ = doctor(
        cluster.folder, "--runs", str(place / "runs"), inside=f"mount -t tmpfs none {place}"
    )
    assert code == 1
    assert states(found, "run folder") == {"n1,n2": "broken"}


def test_a_job_that_does_not_start_is_no_longer_waited_for_and_ended(cluster: Cluster) -> None:
    with cluster.urgent_job() as urgent:
        cluster.wait_for_state(urgent, "RUNNING")
        code, found, said = doctor(cluster.folder, "--slurm-wait", "6")
    assert code == 0
    (waits,) = [each for each in found["findings"] if each["state"] == "warning" and each["name"] == "nodes"]
    assert "no longer waited for after 6 s" in waits["found"]
    assert "waits" in said
    assert "dist-trainer-doctor" not in slurm(
        "squeue", "--noheader", "--format=%j", "--states=RUNNING,PENDING"
    )
