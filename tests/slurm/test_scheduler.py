"""What SLURM says is read right, and silence is no answer. The outputs are those of SLURM 22.05.8."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.errors import DistTrainerError
from dist_trainer.slurm import scheduler
from dist_trainer.slurm.scheduler import (
    NO_SLURM,
    SchedulerUnavailable,
    cancel,
    exclude,
    find,
    find_by_scontrol,
    hostnames,
    is_there,
    my_jobs,
    past_states,
    requeue,
)
from tests.slurm.stand_ins import NO_ACCOUNTS, NO_CONTROLLER, FakeSlurm, queue_line

SCONTROL = """
JobId=470511 JobName=a b|c   JobState=FAILED Reason=x Restarts=7
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901758 Nice=0 Account=root QOS=normal
   JobState=PENDING Reason=BeginTime Dependency=(null)
   Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:00 TimeLimit=01:00:00 TimeMin=N/A
   SubmitTime=2026-11-23T17:50:55 EligibleTime=2026-11-23T17:52:56
   AccrueTime=2026-11-23T17:52:56
   StartTime=2026-11-23T17:52:56 EndTime=2026-11-23T18:52:56 Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-23T17:50:52 Scheduler=Main
   Partition=main AllocNode:Sid=localhost:18444
   ReqNodeList=(null) ExcNodeList=n[1-2]
   NodeList=
   NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   Command=(null)
   WorkDir=/tmp/JobState=FAILED
   StdOut=/dev/null
   Power=

"""
ARRAY = """
JobId=470512 ArrayJobId=470512 ArrayTaskId=1-3%1 ArrayTaskThrottle=1 JobName=wrap
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   SubmitTime=2026-11-23T17:50:52 EligibleTime=Unknown
   StartTime=Unknown EndTime=Unknown Deadline=N/A
   NodeList=

JobId=470513 ArrayJobId=470512 ArrayTaskId=0 ArrayTaskThrottle=1 JobName=wrap
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   SubmitTime=2026-11-23T17:50:52 EligibleTime=2026-11-23T17:50:52
   StartTime=2026-11-23T17:50:52 EndTime=2026-11-23T18:50:52 Deadline=N/A
   NodeList=n1

"""
DOWN = SCONTROL.replace(
    "Reason=BeginTime",
    "Reason=Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority",
)
SACCT = """
470511|PREEMPTED|n[1-2]|2026-11-23T17:50:52|2026-11-23T17:50:55|2026-11-23T17:50:52|0:15|None|a b|c
470511|NODE_FAIL|n1|2026-11-23T17:52:52|2026-11-23T17:53:55|2026-11-23T17:52:52|1:0|None|a b|c
470511|CANCELLED by 0|None assigned|None|2026-11-23T17:51:09|2026-11-23T17:50:55|0:0|BeginTime|a b|c
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.delenv("TZ")
    time.tzset()


def test_squeue_is_believed_first(slurm: FakeSlurm, in_utc: None) -> None:
    line = queue_line("7", "RUNNING", nodes="n[1-3,7]", begin="2026-11-23T17:50:52", name="a|b")
    slurm.says("squeue", line)
    record = find("7")
    assert record is not None and record.is_live and record.source == "squeue"
    assert (record.nodes, record.reason, record.name) == ("n[1-3,7]", "", "a|b")
    assert (record.begin, record.end) == (1795456252.0, None)
    assert not slurm.calls("scontrol")


def test_times_that_slurm_does_not_know_are_none(slurm: FakeSlurm) -> None:
    for word in ("N/A", "Unknown", "None", "", "INVALID"):
        slurm.says("squeue", queue_line("7", "PENDING", begin=word, end=word))
        record = find("7")
        assert record is not None and record.begin is None and record.end is None


def test_scontrol_is_next_and_a_job_may_be_called_anything(slurm: FakeSlurm, in_utc: None) -> None:
    slurm.says("scontrol", SCONTROL)
    record = find("470511")
    assert record is not None and record.source == "scontrol"
    assert (record.state, record.reason, record.restarts, record.nodes) == ("PENDING", "BeginTime", 1, "")
    assert (record.begin, record.end) == (1795456376.0, 1795459976.0)


def test_a_reason_may_be_a_sentence(slurm: FakeSlurm) -> None:
    slurm.says("scontrol", DOWN)
    record = find_by_scontrol("470511")
    assert record is not None
    assert record.reason == "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority"


def test_elements_of_an_array_are_told_apart(slurm: FakeSlurm) -> None:
    slurm.says("scontrol", ARRAY)
    running, waiting = find("470512_0"), find("470512_2")
    assert running is not None and (running.job, running.state) == ("470512_0", "RUNNING")
    assert waiting is not None and waiting.state == "PENDING"
    lines = [queue_line("470512_1", "PENDING"), queue_line("470512_0", "COMPLETED")]
    slurm.says("squeue", "\n".join(lines))
    assert [getattr(find(job), "state", None) for job in ("470512_0", "470512_1")] == ["COMPLETED", "PENDING"]


def test_sacct_is_last_and_the_newest_incarnation_counts(slurm: FakeSlurm) -> None:
    slurm.says("sacct", SACCT)
    record = find("470511")
    assert record is not None and record.source == "sacct"
    assert (record.state, record.nodes, record.is_live) == ("CANCELLED", "", False)
    assert past_states("470511") == ["PREEMPTED", "NODE_FAIL"]
    assert "--duplicates" in slurm.calls("sacct")[-1]


def test_preempted_is_not_failed(slurm: FakeSlurm) -> None:
    slurm.says("sacct", SACCT.strip().splitlines()[0])
    record = find("470511")
    assert record is not None and record.state == "PREEMPTED" and not record.is_live


def test_a_job_is_unknown_only_if_all_deny_it(slurm: FakeSlurm) -> None:
    slurm.says("sacct", "")
    assert find("7") is None
    assert [len(slurm.calls(name)) for name in ("squeue", "scontrol", "sacct")] == [1, 1, 1]
    slurm.fails("sacct", NO_ACCOUNTS)
    assert find("7") is None
    assert past_states("7") == []


def test_an_element_that_was_cancelled_before_it_began_is_denied_on_standard_output(slurm: FakeSlurm) -> None:
    slurm.denies("scontrol", "Job 7_1 not found")
    assert find("7_1") is None


def test_an_empty_answer_beside_a_silent_controller_proves_nothing(slurm: FakeSlurm) -> None:
    slurm.says("sacct", "")
    slurm.fails("squeue", NO_CONTROLLER)
    with pytest.raises(SchedulerUnavailable, match="Unable to contact slurm controller"):
        find("7")


def test_a_hanging_squeue_is_given_up_and_scontrol_asked(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_ASK_S", 0.5)
    slurm.hangs("squeue")
    slurm.says("scontrol", SCONTROL)
    record = find("470511")
    assert record is not None and record.source == "scontrol"
    with pytest.raises(SchedulerUnavailable, match=r"squeue did not answer within 0.5 s"):
        my_jobs()
    assert not is_there()


def test_an_outage_of_everything_is_said_not_guessed(slurm: FakeSlurm) -> None:
    for name in ("squeue", "scontrol", "sacct"):
        slurm.fails(name, NO_CONTROLLER)
    with pytest.raises(SchedulerUnavailable, match="Unable to contact"):
        find("7")


@pytest.mark.parametrize("installed", [True, False])
def test_without_slurm_one_line_says_how_to_try_it(slurm: FakeSlurm, installed: bool) -> None:
    slurm.removed()
    if installed:  # the commands are there, and know no cluster
        slurm.fails("squeue", "squeue: fatal: Could not establish a configuration source")
    assert not is_there()
    with pytest.raises(SchedulerUnavailable) as error:
        my_jobs()
    assert str(error.value) == NO_SLURM and "slurm/local/up" in NO_SLURM and "\n" not in NO_SLURM


def test_my_jobs_are_asked_for_whatever_the_users_own_settings(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    slurm.says("squeue", queue_line("7", "RUNNING") + "\n" + queue_line("9_1", "PENDING", reason="Priority"))
    jobs = my_jobs()
    assert {job: record.state for job, record in jobs.items()} == {"7": "RUNNING", "9_1": "PENDING"}
    assert jobs["9_1"].reason == "Priority"
    assert slurm.calls("squeue")[-1].endswith("SQUEUE_USERS= standard")


def test_a_refusal_has_slurms_own_words(slurm: FakeSlurm) -> None:
    for name in ("scontrol", "scancel"):
        slurm.fails(name, "Access/permission denied")
    for act in (requeue, cancel):
        with pytest.raises(DistTrainerError, match="Access/permission denied") as error:
            act("7")
        assert not isinstance(error.value, SchedulerUnavailable)
    slurm.fails("scontrol", NO_CONTROLLER)
    with pytest.raises(SchedulerUnavailable):
        requeue("7")


def test_excluded_nodes_add_up(slurm: FakeSlurm) -> None:
    slurm.says("scontrol", {"show hostnames": "n1\nn2", "show job": SCONTROL, "update": ""})
    exclude("470511", ["n2", "n5"])
    assert "update JobId=470511 ExcNodeList=n1,n2,n5 " in slurm.calls("scontrol")[-1]


def test_nodelists_are_spelled_out_by_slurm(slurm: FakeSlurm) -> None:
    slurm.says("scontrol", {"show hostnames n[1-3,7]": "n1\nn2\nn3\nn7"})
    assert hostnames("n[1-3,7]") == ["n1", "n2", "n3", "n7"]
    assert hostnames("") == []
