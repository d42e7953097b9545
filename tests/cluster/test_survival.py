"""What a job on a real cluster must survive: each time the same weights as an untouched run, in one MLflow run."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import read_heartbeat
from tests.cluster.cluster import Cluster, slurm, wait_for
from tests.cluster.project import STEPS, Project, Trial, looks_untouched

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
SLOW = "data.train.sample_s=0.1"  # 120 steps take half a minute
ONE_NODE = ("slurm.nodes=1", "launch.workers_per_node=2")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Weights and results of an untouched run of so many ranks, trained on this machine without SLURM."""
    known: dict[int, dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("reference")

    def get(ranks: int) -> dict[str, Any]:
        if ranks not in known:
            project = Project.create(folder / str(ranks), Cluster(folder))
            project.command("train", "train.yaml", "name=reference", "--workers", str(ranks))
            trial = Trial(project, RunFolder.open(project.folder / "runs" / "reference"))
            known[ranks] = {"weights": trial.weights, "results": trial.results}
        return known[ranks]

    return get


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> Iterator[Project]:
    yield Project.create(tmp_path / "project", cluster)


def test_an_untouched_job_of_two_nodes_gives_the_bits_of_a_local_run(
    project: Project, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("untouched")
    trial.finish()
    looks_untouched(trial, reference(2))
    (start,) = [line for line in trial.run.attempts() if line["event"] == "start"]
    assert (start["nodes"], start["job"], start["restart"]) == (["n1", "n2"], trial.job, 0)


def test_four_ranks_on_two_nodes_survive_a_preemption(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("four", SLOW, "launch.workers_per_node=2")
    trial.wait_for_step(20)
    cluster.preempt(trial.job)
    trial.finish()
    looks_untouched(trial, reference(4))


def test_a_preemption_in_training(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]], partition: str
) -> None:
    trial = project.submit("training", SLOW, f"slurm.partition={partition}")
    trial.wait_for_step(30)
    cluster.preempt(trial.job)
    assert trial.run.read_status().state == "stopped"
    assert trial.mlflow_runs() == [("training", "SCHEDULED")]
    trial.finish()
    looks_untouched(trial, reference(2))
    assert (trial.causes, trial.requeues) == (["SIGUSR2", "finished"], ["preempted"])


@pytest.fixture(params=["main", "short_grace"], ids=["60 s of grace", "10 s of grace"])
def partition(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("phase", ["evaluation", "save", "start", "data"])
def test_a_preemption_in_every_other_phase(
    project: Project,
    cluster: Cluster,
    reference: Callable[[int], dict[str, Any]],
    partition: str,
    phase: str,
) -> None:
    project.hold(phase)
    trial = project.submit(phase, f"slurm.partition={partition}", "checkpoint.every_steps=25")
    project.wait_until_reached(phase)
    with cluster.urgent_job():
        wait_for(
            lambda: cluster.show(trial.job).get("PreemptTime", "None") != "None",
            timeout_s=30,
            what=lambda: "the preemption",
        )
        time.sleep(1)
        project.let_go(phase)
        cluster.wait_for_requeue(trial.job)
    trial.finish()
    looks_untouched(trial, reference(2))
    assert trial.requeues == ["preempted"], trial.told()


def test_workers_that_are_stuck_when_the_grace_is_over_lose_what_was_not_saved_and_nothing_else(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("stuck", "slurm.partition=short_grace", "checkpoint.every_steps=25", SLOW)
    trial.wait_for_step(30)
    project.hold("data")
    cluster.preempt(trial.job)
    project.let_go("data")
    trial.finish()
    looks_untouched(trial, reference(2))
    assert trial.run.attempts()[-2]["first_step"] == 25


@pytest.mark.timeout(420)
def test_the_time_limit_twice_in_one_run(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("limit", "data.train.sample_s=0.3", "slurm.time=1")
    restarts = go_on_over_limits(cluster, trial)
    looks_untouched(trial, reference(2))
    assert restarts >= 2
    assert trial.requeues == ["time limit"] * restarts


@pytest.mark.timeout(420)
def test_workers_that_are_stuck_at_the_time_limit_are_ended_in_time_and_the_job_goes_on(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("late", SLOW, "slurm.time=1", "checkpoint.every_steps=10", "launch.timeout_s=200")
    trial.wait_for_step(15)
    project.hold("data")
    cluster.wait_for_requeue(trial.job, timeout_s=150)
    project.let_go("data")
    project.hurry()
    go_on_over_limits(cluster, trial, restarts=1)
    looks_untouched(trial, reference(2))
    assert set(trial.requeues) == {"time limit"}, trial.told()


def go_on_over_limits(cluster: Cluster, trial: Trial, *, restarts: int = 0) -> int:
    """Release the job after each requeue until it has finished the run; how often it was given back."""
    if restarts:
        cluster.release(trial.job)
    while is_requeued(cluster, trial, restarts + 1):
        restarts += 1
        assert trial.run.read_status().state == "stopped", trial.told()
        cluster.release(trial.job)
    trial.finish()
    return restarts


def is_requeued(cluster: Cluster, trial: Trial, restarts: int) -> bool:
    """Wait until the job has been given back for the given time (True), or is over (False)."""

    def over_or_back() -> str:
        shown = cluster.show(trial.job)
        if shown["JobState"] == "COMPLETED":
            return "over"
        is_back = shown["JobState"] == "PENDING" and int(shown["Restarts"]) >= restarts
        return "back" if is_back else ""

    return wait_for(over_or_back, timeout_s=100, what=trial.told) == "back"


def test_a_signal_by_scancel_saves_and_requeues(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("signal", SLOW)
    trial.wait_for_step(20)
    slurm("scancel", "--signal=USR2", trial.job)
    cluster.wait_for_requeue(trial.job)
    trial.finish()
    looks_untouched(trial, reference(2))
    assert (trial.causes, trial.requeues) == (["SIGUSR2", "finished"], ["signal"])


def test_scontrol_requeue_saves_and_leaves_the_requeue_to_slurm(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("requeue", SLOW)
    trial.wait_for_step(20)
    slurm("scontrol", "requeue", trial.job)
    cluster.wait_for_requeue(trial.job)
    trial.wait_for_state("stopped")
    trial.finish()
    looks_untouched(trial, reference(2))
    assert (trial.requeues, cluster.show(trial.job)["Restarts"]) == (["requeued"], "1")


@pytest.mark.parametrize("how", [("scancel",), ("scancel", "--signal=TERM")], ids=" ".join)
def test_a_cancelled_job_is_saved_and_not_requeued_and_a_new_one_goes_on(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]], how: tuple[str, ...]
) -> None:
    trial = project.submit("cancel", SLOW)
    trial.wait_for_step(20)
    slurm(*how, trial.job)
    cluster.wait_for_end(trial.job)
    status = trial.run.read_status()
    assert (status.state, status.run_again) == ("stopped", False), trial.told()
    assert status.step is not None
    assert status.step >= 20
    assert trial.mlflow_runs() == [("cancel", "KILLED")]
    assert cluster.show(trial.job)["Restarts"] == "0"
    again = project.submit("cancel", SLOW)
    again.finish()
    looks_untouched(again, reference(2))


def test_a_node_set_down_is_shut_out_though_its_workers_live(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("down", *ONE_NODE, "data.train.sample_s=0.15", "checkpoint.every_steps=10")
    trial.wait_for_step(30)
    (old,) = nodes_of(trial)
    pid = worker_pid(trial, 0)
    with cluster.node_lost(old):
        cluster.wait_for_requeue(trial.job)
        assert is_alive(pid), "the old workers should not have heard of it"
        cluster.release(trial.job)
        wait_for(lambda: nodes_of(trial) != [old], timeout_s=60, what=trial.told)
        wait_for(lambda: not is_alive(pid), timeout_s=60, what=lambda: "the old workers to find out")
        trial.finish()
    looks_untouched(trial, reference(2))
    assert trial.run.highest_fence() == 2, trial.told()


def nodes_of(trial: Trial) -> list[str]:
    """The nodes of the newest attempt."""
    nodes: list[str] = [line for line in trial.run.attempts() if line["event"] == "start"][-1]["nodes"]
    return nodes


def worker_pid(trial: Trial, rank: int) -> int:
    beat = read_heartbeat(trial.run.heartbeat_path(rank))
    assert beat is not None
    return beat.pid


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_killed_worker_is_restarted_inside_the_allocation(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("killed", SLOW, "checkpoint.every_steps=10")
    trial.wait_for_step(25)
    os.kill(worker_pid(trial, 1), signal.SIGKILL)
    trial.finish()
    looks_untouched(trial, reference(2))
    assert trial.causes == ["killed", "finished"]
    assert cluster.show(trial.job)["Restarts"] == "0"


@pytest.mark.parametrize("rank", [0, 1], ids=["first node", "other node"])
def test_a_killed_agent_gives_the_job_back(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]], rank: int
) -> None:
    trial = project.submit("agent", SLOW, "checkpoint.every_steps=10")
    trial.wait_for_step(25)
    agents = [
        pid
        for pid, name in cluster.processes(trial.job).items()
        if "slurm.task" in name and node_of(pid) == f"n{rank + 1}" and "srun" not in name
    ]
    assert agents, cluster.processes(trial.job)
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    cluster.wait_for_requeue(trial.job)
    trial.finish()
    looks_untouched(trial, reference(2))
    assert trial.requeues == ["lost"], trial.told()


def node_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (name,) = [item.partition(b"=")[2] for item in variables if item.startswith(b"SLURMD_NODENAME=")]
    return name.decode()


def test_a_users_exception_is_tried_twice_and_not_requeued(project: Project, cluster: Cluster) -> None:
    trial = project.submit("exception", "model.fail=wrong shape")
    assert cluster.wait_for_end(trial.job) == "FAILED"
    status = trial.run.read_status()
    assert status.state == "failed"
    assert "ValueError: wrong shape (recipe.py:" in status.reason
    assert (trial.causes, trial.requeues) == (["failed", "failed"], [])
    assert cluster.show(trial.job)["ExitCode"] == "1:0"


def test_a_mistake_that_only_a_node_can_see_is_not_requeued(project: Project, cluster: Cluster) -> None:
    trial = project.submit("mistake", "launch.device=cuda", "launch.workers_per_node=auto")
    assert cluster.wait_for_end(trial.job) == "FAILED"
    status = trial.run.read_status()
    assert status.state == "failed", trial.told()
    assert "launch.device" in status.reason
    assert cluster.show(trial.job)["ExitCode"] == "2:0"
    assert trial.requeues == []


@pytest.mark.timeout(400)
def test_three_starts_without_progress_end_with_93(project: Project, cluster: Cluster) -> None:
    (project.folder / "kill-workers").touch()
    trial = project.submit("still", *ONE_NODE, "launch.max_restarts=0")
    for restarts in (1, 2, 3):
        cluster.wait_for_requeue(trial.job, restarts=restarts, timeout_s=60)
        cluster.release(trial.job)
    assert cluster.wait_for_end(trial.job) == "FAILED"
    assert cluster.show(trial.job)["ExitCode"] == "93:0"
    assert trial.run.read_status().state == "do-not-requeue"
    assert trial.requeues == ["failure"] * 3


def test_a_node_that_failed_twice_is_excluded_at_the_next_requeue_and_that_is_said(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("bad-node", *ONE_NODE, SLOW, "launch.max_restarts=0", "checkpoint.every_steps=10")
    for step in (20, 50):
        trial.wait_for_step(step)
        os.kill(worker_pid(trial, 1), signal.SIGKILL)
        cluster.wait_for_requeue(trial.job, restarts=1 if step == 20 else 2)
        cluster.release(trial.job)
    trial.finish()
    looks_untouched(trial, reference(2))
    assert nodes_of(trial) == ["n2"]
    assert cluster.show(trial.job)["ExcNodeList"] == "n1"
    assert "without n1" in trial.told()


def test_a_second_submission_is_refused_while_the_first_lives_and_takes_over_once_it_is_dead(
    project: Project, cluster: Cluster, reference: Callable[[int], dict[str, Any]]
) -> None:
    trial = project.submit("twice", SLOW, "checkpoint.every_steps=10")
    said = project.command("submit", "train.yaml", "name=twice", SLOW, "checkpoint.every_steps=10", code=2)
    first = trial.job
    assert f"job {first}" in said
    trial.wait_for_step(20)
    for pid in cluster.processes(first):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.wait_for_end(first)
    again = project.submit("twice", SLOW, "checkpoint.every_steps=10")
    assert again.job != first
    again.finish()
    looks_untouched(again, reference(2))
    assert trial.causes == ["died without a word", "finished"]
    assert again.run.read_status().step == STEPS
