"""The local cluster itself, and what SLURM does that the package relies on: each was a surprise once."""

import contextlib
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.cluster import NODES, Cluster, SlurmFailed, slurm, wait_for

LOCAL = Path(__file__).resolve().parents[2] / "slurm" / "local"
BOTH_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--time=5")
# an agent with a worker in a session of its own, as torch's elastic agent starts them
LISTENER = Path(__file__).with_name("listener.py")
LISTEN = f"srun {sys.executable} {LISTENER} agent"
MEET = Path(__file__).with_name("meet.py")


def test_status_says_that_the_cluster_can_be_used(cluster: Cluster) -> None:
    done = local("status")
    assert done.returncode == 0, done.stdout
    assert "n1 idle, n2 idle" in done.stdout
    assert "main* short_grace urgent" in done.stdout


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    before = daemons()
    assert len(before) >= 6
    done = local("up")
    assert done.returncode == 0, done.stderr
    assert daemons() == before


def test_up_leaves_another_slurm_alone(cluster: Cluster, tmp_path: Path) -> None:
    before = daemons()
    done = local("up", SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert done.returncode == 1
    assert "there is a SLURM here already" in done.stderr
    assert daemons() == before


@pytest.mark.parametrize("command", ["up", "down"])
def test_without_root_nothing_happens(cluster: Cluster, command: str, tmp_path: Path) -> None:
    identity = tmp_path / "id"
    identity.write_text("#!/bin/sh\necho 1000\n")
    identity.chmod(0o755)
    before = daemons()
    done = local(command, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "root is needed" in done.stderr
    assert daemons() == before


def test_one_job_has_both_nodes_and_two_cpus_on_each(cluster: Cluster) -> None:
    script = "export SRUN_CPUS_PER_TASK=2\nsrun bash -c 'echo $SLURMD_NODENAME $SLURM_CPUS_PER_TASK'"
    job = cluster.submit(script, *BOTH_NODES)
    assert cluster.wait_for_end(job) == "COMPLETED"
    assert sorted(cluster.output(job).split("\n")[:-1]) == ["n1 2", "n2 2"]


def test_ranks_on_both_nodes_meet_over_gloo_by_the_name_of_a_node(cluster: Cluster) -> None:
    job = cluster.submit(f"srun {sys.executable} {MEET}", *BOTH_NODES)
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    assert sorted(cluster.output(job).split("\n")[:-1]) == ["n1 3.0", "n2 3.0"]


def test_scontrol_knows_when_a_job_ends_where_its_environment_does_not(cluster: Cluster) -> None:
    job = cluster.submit("srun bash -c 'echo \"end: $SLURM_JOB_END_TIME\"; sleep 60'", "--time=3")
    end = cluster.wait_for_output(job, "end:").split(":")[1].strip()
    record = cluster.show(job)
    limit = datetime.fromisoformat(record["EndTime"]) - datetime.fromisoformat(record["StartTime"])
    assert limit == timedelta(minutes=3)
    assert not end or float(end) == pytest.approx(
        datetime.fromisoformat(record["EndTime"]).timestamp(), abs=2
    )


def test_a_signal_reaches_every_process_of_the_step_but_not_the_batch_shell(cluster: Cluster) -> None:
    job = cluster.submit(f"trap 'echo shell got it' USR2\n{LISTEN}", *BOTH_NODES)
    cluster.wait_for_output(job, "listens", times=4)
    slurm("scancel", "--signal=USR2", job)
    said = cluster.wait_for_output(job, "SIGUSR2", times=4)
    for node in NODES:
        assert f"{node} agent SIGUSR2" in said
        assert f"{node} worker SIGUSR2" in said  # in a session of its own
    assert "shell got it" not in said
    assert cluster.state(job) == "RUNNING"


def test_the_signal_before_the_time_limit_reaches_every_process_of_the_step(cluster: Cluster) -> None:
    job = cluster.submit(LISTEN, *BOTH_NODES, "--time=1", "--signal=USR2@50")
    said = cluster.wait_for_output(job, "SIGUSR2", times=4, timeout_s=60)
    assert "SIGTERM" not in said
    assert cluster.state(job) == "RUNNING"


def test_a_requeue_raises_the_count_and_is_held_until_it_is_released(cluster: Cluster) -> None:
    script = "echo start ${SLURM_RESTART_COUNT:-none}\nsleep 60"
    job = cluster.submit(script, "--requeue", "--nodes=1")
    cluster.wait_for_output(job, "start none")
    slurm("scontrol", "requeue", job)
    cluster.wait_for_requeue(job)
    held = cluster.show(job)
    assert held["Reason"] == "BeginTime"
    assert datetime.fromisoformat(held["StartTime"]) > datetime.now() + timedelta(seconds=60)
    cluster.release(job)
    cluster.release(job)  # one that starts at this moment, or has started, is left alone
    cluster.wait_for_output(job, "start 1", timeout_s=30)
    cluster.release(job)
    assert cluster.show(job)["Restarts"] == "1"
    wait_for(
        lambda: cluster.past_states(job) == ["REQUEUED", "RUNNING"],
        timeout_s=30,
        what=lambda: f"both lives in sacct: {cluster.past_states(job)}",
    )


@pytest.mark.timeout(180)
def test_preemption_is_a_signal_then_the_end_then_the_queue(cluster: Cluster) -> None:
    job = cluster.submit(LISTEN, *BOTH_NODES, "--partition=short_grace", "--requeue", "--signal=USR2@5")
    cluster.wait_for_output(job, "listens", times=4)
    with cluster.urgent_job() as urgent:
        said = cluster.wait_for_output(job, "SIGUSR2", times=4, timeout_s=30)
        assert "SIGTERM" not in said
        assert cluster.state(job) == "RUNNING"  # its grace
        cluster.wait_for_requeue(job)
        cluster.wait_for_state(urgent, "RUNNING")
    assert cluster.output(job).count("SIGTERM") >= 4
    assert cluster.show(job)["Restarts"] == "1"
    wait_for(
        lambda: cluster.past_states(job)[:1] == ["PREEMPTED"],
        timeout_s=30,
        what=lambda: f"sacct to say PREEMPTED: {cluster.past_states(job)}",
    )
    cluster.release(job)
    cluster.wait_for_output(job, "listens", times=8)


def test_a_lost_node_sends_its_job_back_to_the_queue(cluster: Cluster) -> None:
    job = cluster.submit("sleep 60", "--requeue", "--nodes=1", "--nodelist=n1")
    cluster.wait_for_state(job, "RUNNING")
    with cluster.node_down("n1"):
        assert "DOWN" in cluster.node_state("n1")
        cluster.wait_for_requeue(job)
    wait_for(
        lambda: cluster.past_states(job)[:1] == ["NODE_FAIL"],
        timeout_s=30,
        what=lambda: f"sacct to say NODE_FAIL: {cluster.past_states(job)}",
    )


def test_a_cancelled_job_gets_a_signal_and_stays_away(cluster: Cluster) -> None:
    job = cluster.submit(LISTEN, *BOTH_NODES, "--requeue")
    cluster.wait_for_output(job, "listens", times=4)
    slurm("scancel", job)
    assert cluster.wait_for_end(job) == "CANCELLED"
    assert cluster.output(job).count("SIGTERM") >= 4


def test_the_options_are_tried_without_a_job(cluster: Cluster) -> None:
    words = ("sbatch", "--test-only", "--wrap=true", f"--chdir={cluster.folder}")
    done = subprocess.run([*words, "--nodes=2"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert "to start at" in done.stderr  # not where output goes
    with pytest.raises(SlurmFailed, match="invalid partition"):
        slurm(*words, "--partition=nowhere")
    with pytest.raises(SlurmFailed, match="node"):
        slurm(*words, "--nodes=3")


def test_a_job_of_an_array_has_a_number_of_its_own(cluster: Cluster) -> None:
    job = cluster.submit("echo $SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID", "--array=0-2%1", "--nodes=1")
    ended = [cluster.wait_for_end(f"{job}_{number}") for number in range(3)]
    assert ended == ["COMPLETED"] * 3
    assert cluster.show(f"{job}_1")["JobId"] != job
    assert cluster.output(job).split() == [job, "0", job, "1", job, "2"]


def local(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts of slurm/local."""
    return subprocess.run(
        [str(LOCAL / command)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def daemons() -> set[tuple[str, str]]:
    """Pid and name of each daemon of a SLURM, without what one of them has forked for a moment."""
    names = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"}
    found: dict[str, str] = {}
    parents: dict[str, str] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (name := (entry / "comm").read_text().strip()) in names:
                parents[entry.name] = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found[entry.name] = name
    return {(pid, name) for pid, name in found.items() if found.get(parents[pid]) != name}
