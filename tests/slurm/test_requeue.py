"""What becomes of a job that stops: every case of the decision, and what is written for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.config.schema import Config
from dist_trainer.errors import DistTrainerError
from dist_trainer.launchers.failures import Failure
from dist_trainer.launchers.results import Ending
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm import requeue, scheduler
from dist_trainer.slurm.lost_attempts import close_lost_attempts
from dist_trainer.slurm.requeue import Decision, bad_nodes, decide, give_back, stands_still
from dist_trainer.slurm.scheduler import JobRecord, SchedulerUnavailable

JOB = SlurmJob("7", 1, "n1", 0, 2, "n[1-2]", end_time=10_000.0)
LONG_BEFORE_THE_END = 5_000.0


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "test", "", working_folder=tmp_path)


def ending(run: RunFolder, state: str, *, again: bool = False, failed: bool = False) -> Ending:
    failure = Failure(0, "rank 0 was killed by SIGKILL", run.path) if failed else None
    code = {"finished": 0, "stopped": 75}.get(state, 1)
    what = failure.what if failure else ""
    return Ending(run, Config.model_construct(), state, code, 10, {}, failure, what, run_again=again)


def judge(how: Ending, *, ended: bool = False, now: float = LONG_BEFORE_THE_END, **record: Any) -> Decision:
    known = JobRecord("7", **{"state": "RUNNING", "restarts": 1, **record})
    return decide(how, was_ended=ended, record=known, job=JOB, now=now)


def test_a_finished_run_is_not_requeued_whatever_came_while_it_ended(run: RunFolder) -> None:
    assert not judge(ending(run, "finished"), ended=True, state="CANCELLED").requeue


@pytest.mark.parametrize(
    ("record", "cause"),
    [({"preempted": True}, "preempted"), ({}, "signal")],
    ids=["preempted", "scancel --signal=USR2"],
)
def test_a_machine_that_is_wanted_back_gets_the_job_requeued(
    run: RunFolder, record: dict[str, Any], cause: str
) -> None:
    decision = judge(ending(run, "stopped", again=True), **record)
    assert (decision.requeue, decision.cause) == (True, cause)


def test_near_its_end_the_cause_is_the_time_limit_unless_it_is_preempted(run: RunFolder) -> None:
    stopped = ending(run, "stopped", again=True)
    assert judge(stopped, now=9_900.0).cause == "time limit"
    assert judge(stopped, now=9_900.0, preempted=True).cause == "preempted"


def test_a_job_that_the_clock_stopped_is_requeued(run: RunFolder) -> None:
    run.write_status(Status("stopped", "time limit", 10, run_again=True))
    decision = judge(ending(run, "stopped", again=True))
    assert (decision.requeue, decision.cause) == (True, "time limit")


@pytest.mark.parametrize(
    ("record", "requeue", "cause"),
    [
        ({"state": "CANCELLED"}, False, "cancelled"),
        ({"state": "COMPLETING"}, False, "cancelled"),
        ({"state": "COMPLETING", "restarts": 2}, False, "requeued"),
        ({"state": "PENDING"}, False, "requeued"),
        ({"state": "TIMEOUT"}, True, "time limit"),
        ({"state": "COMPLETING", "reason": "TimeLimit"}, True, "time limit"),
        ({"state": "PREEMPTED"}, True, "preempted"),
        ({"state": "RUNNING"}, False, "cancelled"),  # scancel --signal=TERM: a person's
    ],
)
def test_after_term_the_controller_says_who_ended_the_job(
    run: RunFolder, record: dict[str, Any], requeue: bool, cause: str
) -> None:
    decision = judge(ending(run, "stopped", again=True), ended=True, **record)
    assert (decision.requeue, decision.cause) == (requeue, cause)


def test_a_job_that_is_cancelled_shortly_before_its_end_stays_cancelled(run: RunFolder) -> None:
    stopped = ending(run, "stopped", again=True)
    assert judge(stopped, ended=True, now=9_900.0, state="COMPLETING", end=9_900.0).cause == "cancelled"
    assert judge(stopped, ended=True, now=9_999.0, state="COMPLETING", end=9_999.0).cause == "time limit"


def test_a_step_that_ends_because_another_node_died_is_requeued(run: RunFolder) -> None:
    decision = judge(ending(run, "stopped", again=True, failed=True), ended=True)
    assert (decision.requeue, decision.cause) == (True, "lost")


def test_a_step_that_ends_before_it_began_lost_a_node_if_it_has_several(run: RunFolder) -> None:
    nothing = replace(ending(run, "stopped"), began=False)
    assert judge(nothing, ended=True).cause == "lost"
    known = JobRecord("7", "RUNNING", restarts=1)
    alone = replace(JOB, node_count=1)
    decision = decide(nothing, was_ended=True, record=known, job=alone, now=LONG_BEFORE_THE_END)
    assert decision.cause == "cancelled"


def test_ctrl_c_or_term_alone_is_not_requeued(run: RunFolder) -> None:
    assert not judge(ending(run, "stopped")).requeue


def test_a_failure_is_requeued_only_where_another_start_may_help(run: RunFolder) -> None:
    assert judge(ending(run, "failed", again=True, failed=True)).requeue
    assert not judge(ending(run, "failed", failed=True)).requeue


def test_a_controller_that_does_not_answer_after_term_means_no_requeue(run: RunFolder) -> None:
    stopped = ending(run, "stopped", again=True)
    assert not decide(stopped, was_ended=True, record=None, job=JOB, now=LONG_BEFORE_THE_END).requeue


def again(cause: str, step: int | None, job: str = "7") -> dict[str, Any]:
    return {"event": "requeue", "cause": cause, "step": step, "job": job}


def test_three_requeues_at_one_step_are_a_standstill_and_preemptions_neither_count_nor_excuse() -> None:
    assert stands_still([again("failure", 5)] * 3, 5, "7")
    assert stands_still([again("failure", None), again("lost", None), again("failure", None)], None, "7")
    assert stands_still([again("time limit", None)] * 3, None, "7")
    failure, signal = again("failure", 5), again("signal", 5)
    assert stands_still([failure, signal, failure, signal, failure, signal], 5, "7")
    assert not stands_still([failure] * 2, 5, "7")
    assert not stands_still([failure] * 3, 6, "7")
    assert not stands_still([again("failure", 4), failure, failure], 5, "7")
    assert not stands_still([again("preempted", 5)] * 9, 5, "7")


def test_another_job_of_the_run_counts_anew() -> None:
    assert not stands_still([again("failure", 5, job="6")] * 3, 5, "7")


def attempt(
    number: int, node: str | None, cause: str, error: str = "", job: str = "7"
) -> list[dict[str, Any]]:
    return [
        {"event": "start", "attempt": number, "job": job, "nodes": [node]},
        {"event": "end", "attempt": number, "node": node, "cause": cause, "error": error, "exit_code": 1},
    ]


def test_a_node_is_bad_after_its_second_failure_in_one_job() -> None:
    assert bad_nodes([*attempt(1, "n1", "killed"), *attempt(2, None, "killed")], "7") == []
    twice = [*attempt(1, "n1", "killed"), *attempt(2, "n1", "node failure"), *attempt(3, "n2", "killed")]
    assert bad_nodes(twice, "7") == ["n1"]
    assert bad_nodes([*attempt(1, "n1", "killed"), *attempt(2, "n1", "killed", job="6")], "7") == []


def test_an_exception_is_the_nodes_only_where_it_speaks_of_its_hardware() -> None:
    own = [line for number in (1, 2) for line in attempt(number, "n1", "failed", "ValueError: shape")]
    assert bad_nodes(own, "7") == []
    device = [
        line for number in (1, 2) for line in attempt(number, "n1", "failed", "CUDA error: uncorrectable")
    ]
    assert bad_nodes(device, "7") == ["n1"]


class Controller:
    """Remembers what it was asked; does not answer the first `busy` times."""

    def __init__(self, busy: int = 0) -> None:
        self.busy = busy
        self.nodes = ["n1", "n2", "n3"]
        self.asked: list[tuple[str, ...]] = []

    def requeue(self, job: str) -> None:
        if self.busy:
            self.busy -= 1
            raise SchedulerUnavailable("slurmctld is restarting")
        self.asked.append(("requeue", job))

    def nodes_to_choose_from(self, job: str) -> list[str]:
        return self.nodes

    def exclude(self, job: str, nodes: list[str]) -> None:
        self.asked.append(("exclude", job, *nodes))


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    asked = Controller()
    monkeypatch.setattr(scheduler, "requeue", asked.requeue)
    monkeypatch.setattr(scheduler, "exclude", asked.exclude)
    monkeypatch.setattr(requeue, "nodes_to_choose_from", asked.nodes_to_choose_from)
    monkeypatch.setattr(requeue, "ask", lambda job: JobRecord("7", "RUNNING", restarts=JOB.restart))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return asked


def test_giving_back_writes_why_then_asks_until_the_controller_answers(
    run: RunFolder, controller: Controller
) -> None:
    controller.busy = 2
    said: list[str] = []
    assert give_back(run, JOB, Decision(True, "preempted", "the job is preempted"), said.append) is None
    assert controller.asked == [("requeue", "7")]
    (line,) = run.attempts()
    assert (line["event"], line["job"], line["cause"], line["excluded"]) == ("requeue", "7", "preempted", [])
    assert said[0] == "the job is preempted: requeued"


def test_a_bad_node_is_excluded_after_the_requeue_and_that_is_said(
    run: RunFolder, controller: Controller
) -> None:
    for number in (1, 2):
        for line in attempt(number, "n1", "killed"):
            run.record(line)
    said: list[str] = []
    give_back(run, JOB, Decision(True, "failure", "rank 0 was killed"), said.append)
    assert controller.asked == [("requeue", "7"), ("exclude", "7", "n1")]
    assert said == ["rank 0 was killed: requeued, without n1: failed 2 times"]


def test_a_bad_node_is_kept_where_too_few_others_are_left(run: RunFolder, controller: Controller) -> None:
    controller.nodes = ["n1", "n2"]  # the job wants two
    for number in (1, 2):
        for line in attempt(number, "n1", "killed"):
            run.record(line)
    said: list[str] = []
    give_back(run, JOB, Decision(True, "failure", "rank 0 was killed"), said.append)
    assert controller.asked == [("requeue", "7")]
    assert "too few nodes would be left" in said[0]


def test_what_lives_on_a_lost_node_leaves_the_job_alone_that_trains_elsewhere(
    run: RunFolder, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requeue, "ask", lambda job: JobRecord("7", "RUNNING", restarts=JOB.restart + 1))
    said: list[str] = []
    assert give_back(run, JOB, Decision(True, "lost", "the agent died"), said.append) is None
    assert (controller.asked, run.attempts()) == ([], [])
    assert said == ["SLURM has put the job back into the queue"]


def test_a_job_that_is_back_in_the_queue_already_is_no_error(
    run: RunFolder, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = JobRecord("7", "RUNNING", restarts=JOB.restart)
    answers = [known, JobRecord("7", "PENDING", restarts=2), known, JobRecord("7", "CANCELLED", restarts=1)]

    def refused(job: str) -> None:
        raise DistTrainerError("Job is pending execution for job 7")

    monkeypatch.setattr(scheduler, "requeue", refused)
    monkeypatch.setattr(requeue, "ask", lambda job: answers.pop(0))
    assert give_back(run, JOB, Decision(True, "lost", "gone"), lambda text: None) is None
    with pytest.raises(DistTrainerError, match="pending execution"):
        give_back(run, JOB, Decision(True, "lost", "gone"), lambda text: None)


def test_a_standstill_is_not_requeued_and_the_run_says_so(run: RunFolder, controller: Controller) -> None:
    said: list[str] = []
    decision = Decision(True, "failure", "rank 0 was killed")
    codes = [give_back(run, JOB, decision, said.append) for _ in range(4)]
    assert codes == [None, None, None, 93]
    assert len(controller.asked) == 3
    assert run.read_status().state == "do-not-requeue"
    assert "never got beyond the start" in run.read_status().reason


def test_an_attempt_that_died_without_a_word_gets_slurms_word_for_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt, restart in ((1, 0), (2, 1)):
        run.record({"event": "start", "attempt": attempt, "job": "7", "restart": restart, "nodes": ["n1"]})
    run.record({"event": "end", "attempt": 2, "cause": "finished"})
    monkeypatch.setattr(scheduler, "past_states", lambda job: ["NODE_FAIL"])
    close_lost_attempts(run, JOB)
    (line,) = [line for line in run.attempts() if line["event"] == "end" and line["attempt"] == 1]
    assert (line["cause"], line["node"]) == ("node failure", "n1")


def test_without_accounts_it_only_says_that_it_died(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(job: str) -> list[str]:
        raise DistTrainerError("Slurm accounting storage is disabled")

    run.record({"event": "start", "attempt": 1, "job": "7", "restart": 0, "nodes": ["n1", "n2"]})
    monkeypatch.setattr(scheduler, "past_states", off)
    close_lost_attempts(run, JOB)
    line = run.attempts()[-1]
    assert (line["cause"], line["node"]) == ("died without a word", None)
