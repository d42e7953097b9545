"""The real SLURM is read as the stand-ins of tests/launchers have it."""

import time

import pytest

from dist_trainer.errors import DistTrainerError
from dist_trainer.slurm.scheduler import (
    SchedulerUnavailable,
    cancel,
    exclude,
    find,
    find_by_sacct,
    find_by_scontrol,
    find_by_squeue,
    hostnames,
    is_there,
    my_jobs,
    past_states,
    requeue,
)
from tests.cluster.cluster import Cluster, wait_for

pytestmark = pytest.mark.timeout(180)


def test_a_running_job_is_told_alike_by_squeue_and_scontrol(cluster: Cluster) -> None:
    assert is_there()
    job = cluster.submit("sleep 100", "--nodes=2", "--time=5", "--job-name=a b|JobState=FAILED Reason=x")
    cluster.wait_for_state(job, "RUNNING")
    for record in (find_by_squeue(job), find_by_scontrol(job)):
        assert record is not None and record.is_live
        assert (record.state, record.reason, record.nodes) == ("RUNNING", "", "n[1-2]")
        assert record.begin is not None and record.end == record.begin + 300
        assert abs(time.time() - record.begin) < 60
        assert record.name == "a b|JobState=FAILED Reason=x"
    assert hostnames("n[1-2]") == ["n1", "n2"]
    assert my_jobs()[job].state == "RUNNING"
    cancel(job)
    cluster.wait_for_state(job, "CANCELLED")
    ended = find(job)
    assert ended is not None and ended.source == "squeue" and not ended.is_live
    assert job not in my_jobs()


def test_a_requeued_job_waits_has_a_past_and_can_be_kept_off_nodes(cluster: Cluster) -> None:
    job = cluster.submit("sleep 100", "--requeue")
    cluster.wait_for_state(job, "RUNNING")
    requeue(job)
    cluster.wait_for_requeue(job)
    record = find_by_scontrol(job)
    assert record is not None and (record.state, record.restarts) == ("PENDING", 1)
    wait_for(
        lambda: (found := find(job)) is not None and found.reason == "BeginTime" and found.begin,
        timeout_s=30,
        what=lambda: "the hold after the requeue",
    )
    exclude(job, ["n1"])
    exclude(job, ["n2"])
    assert cluster.show(job)["ExcNodeList"] == "n1,n2"
    wait_for(
        lambda: past_states(job) == ["REQUEUED"], timeout_s=30, what=lambda: f"its past: {past_states(job)}"
    )
    last = find_by_sacct(job)
    assert last is not None and last.state == "PENDING"


def test_the_elements_of_an_array_are_jobs_of_their_own(cluster: Cluster) -> None:
    array = cluster.submit("sleep 100", "--array=0-2%1")
    first, second = f"{array}_0", f"{array}_1"
    wait_for(lambda: (one := find(first)) and one.state == "RUNNING", timeout_s=60, what=lambda: first)
    for look in (find_by_squeue, find_by_scontrol):
        one, other = look(first), look(second)
        assert one is not None and (one.job, one.state) == (first, "RUNNING")
        assert other is not None and (other.state, other.reason) == ("PENDING", "JobArrayTaskLimit")
    assert {first, second, f"{array}_2"} <= my_jobs().keys()
    cancel(second)
    # nobody has a line for an element that never began
    wait_for(lambda: find(second) is None, timeout_s=30, what=lambda: str(find(second)))
    left = find(first)
    assert left is not None and left.is_live


def test_what_slurm_refuses_is_quoted_and_a_job_it_never_had_is_none(cluster: Cluster) -> None:
    assert find("1") is None
    assert past_states("1") == []
    with pytest.raises(DistTrainerError, match="Invalid job id") as error:
        requeue("1")
    assert not isinstance(error.value, SchedulerUnavailable)
