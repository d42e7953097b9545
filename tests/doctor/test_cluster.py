"""Clusters that are set otherwise than a run would like, told by a scontrol that says so."""

import os
from pathlib import Path

import pytest

from dist_trainer.doctor.cluster import check_cluster
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.subject import subject_of

SETTINGS = {
    "ClusterName": "small",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "PreemptType": "preempt/partition_prio",
    "PreemptParameters": "(null)",
    "SlurmctldParameters": "preempt_send_user_signal",
    "SLURM_VERSION": "24.11.5",
}
PARTITION = {
    "PartitionName": "gpu",
    "Default": "YES",
    "State": "UP",
    "TotalNodes": "4",
    "MaxNodes": "UNLIMITED",
    "MaxTime": "1-00:00:00",
    "PreemptMode": "REQUEUE",
    "GraceTime": "60",
}


class Cluster:
    """A scontrol in front of any other, and what doctor says by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def look(
        self, *values: str, settings: dict[str, str] | None = None, **partition: str
    ) -> dict[str, Finding]:
        """What is said where one partition is so, beside a hidden one, `short`, of two hours and one node."""
        config = "\n".join(f"{key:<24}= {value}" for key, value in {**SETTINGS, **(settings or {})}.items())
        shown = " ".join(f"{key}={value}" for key, value in {**PARTITION, **partition}.items())
        hidden = (
            'case "$*" in *--all*) echo "PartitionName=short State=UP TotalNodes=1 MaxTime=2:00:00";; esac'
        )
        script = (
            f"#!/bin/sh\nif [ $2 = config ]; then cat <<E\n{config}\nE\nelse echo '{shown}'; {hidden}; fi\n"
        )
        path = self.folder / "scontrol"
        path.write_text(script)
        path.chmod(0o755)
        return {each.name: each for each in check_cluster(subject_of(values, self.folder))}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Cluster(tmp_path)


def test_a_cluster_as_docs_want_it_is_fine(cluster: Cluster) -> None:
    found = cluster.look("slurm.nodes=4", "slurm.time=24:00:00", "slurm.partition=gpu")
    assert {each.state for each in found.values()} == {"fine"}
    assert found.keys() == {"SLURM", "partition", "preemption", "job's end"}


@pytest.mark.parametrize(
    ("values", "partition", "words"),
    [
        (["slurm.partition=cpu"], {}, "there is no cpu"),
        (["slurm.partition='gpu,cpu'"], {}, "there is no cpu"),
        (["slurm.nodes=5"], {}, "slurm.nodes is 5"),
        (["slurm.nodes=3"], {"MaxNodes": "2"}, "slurm.nodes is 3"),
        (["slurm.time=2-00:00:00"], {}, "slurm.time is 2-00:00:00"),
        ([], {"State": "DOWN"}, "gpu is DOWN"),
    ],
)
def test_what_the_partition_does_not_give_is_broken(
    values: list[str], partition: dict[str, str], words: str, cluster: Cluster
) -> None:
    found = cluster.look(*values, **partition)["partition"]
    assert found.state == "broken"
    assert words in found.found
    assert "slurm." in found.advice


def test_of_a_list_of_partitions_one_has_to_give_it(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.look("slurm.partition=short")["partition"].state == "fine"  # though it is hidden
    both = check_cluster(subject_of(["slurm.partition='gpu,short'", "slurm.nodes=2"], tmp_path))
    assert [(each.state, each.found) for each in both if each.name == "partition"] == [
        ("fine", "gpu: 4 nodes, at most 1-00:00:00"),
        ("warning", "short: 1 node, at most 2:00:00; slurm.nodes is 2"),
    ]


def test_where_none_is_the_default_the_cluster_may_still_choose(cluster: Cluster) -> None:
    found = cluster.look(Default="NO")["partition"]
    assert (found.state, found.found) == ("warning", "none is the default")
    assert "one of gpu, short" in found.advice


@pytest.mark.parametrize(
    ("settings", "partition", "words"),
    [
        ({}, {"GraceTime": "0"}, "without a GraceTime: TERM at once, and 30 s to save"),
        ({"SlurmctldParameters": "(null)"}, {}, "without PreemptParameters=send_user_signal"),
        ({}, {"PreemptMode": "CANCEL"}, "ended, and not requeued"),
        ({}, {"PreemptMode": "GANG,SUSPEND"}, "suspended"),
    ],
)
def test_a_preemption_that_leaves_little_time_is_a_warning(
    settings: dict[str, str], partition: dict[str, str], words: str, cluster: Cluster
) -> None:
    found = cluster.look(settings=settings, **partition)["preemption"]
    assert found.state == "warning"
    assert words in found.found


def test_where_nothing_preempts_there_is_nothing_to_say(cluster: Cluster) -> None:
    assert cluster.look(settings={"PreemptType": "preempt/none"})["preemption"].state == "fine"
    newer = {
        "SlurmctldParameters": "(null)",
        "PreemptParameters": "strict_order,send_user_signal",
    }
    assert cluster.look(settings=newer)["preemption"].state == "fine"


def test_the_end_of_a_job_is_told(cluster: Cluster) -> None:
    found = cluster.look(settings={"KillWait": "5 sec", "JobRequeue": "0"})["job's end"]
    assert found.state == "warning"
    assert "KillWait 5 s, JobRequeue 0 (our jobs ask for it)" in found.found


def test_no_slurm_is_a_warning_only_where_one_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = check_cluster(subject_of([], tmp_path))
    assert found.state == "skipped"
    (found,) = check_cluster(subject_of(["slurm.partition=gpu"], tmp_path))
    assert found.state == "warning"
