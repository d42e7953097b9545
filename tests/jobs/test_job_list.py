"""How runs and jobs stand is told in words, from the first who knows: squeue, scontrol, sacct, the run's folder."""

import io
import json
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from dist_trainer.jobs.detail import show_detail
from dist_trainer.jobs.listing import Queue, list_jobs, stand_in_queue
from dist_trainer.jobs.log_files import logs_of
from dist_trainer.jobs.standing import Standing, clock
from dist_trainer.jobs.table import duration, shorten, show_jobs
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.reasons import why_it_waits
from dist_trainer.slurm.scheduler import NO_SLURM
from dist_trainer.slurm.submissions import Submission, add_job, jobs_of, jobs_path, last_job
from tests.jobs.standing_runs import StandingRuns
from tests.slurm.stand_ins import NO_CONTROLLER, FakeSlurm, queue_line


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("squeue", "")
    return fake


@pytest.fixture
def runs(tmp_path: Path) -> StandingRuns:
    return StandingRuns(tmp_path)


def stand(run: RunFolder) -> Standing:
    return stand_in_queue(run, Queue())


def shown(runs: StandingRuns, *, width: int = 80, every: bool = False) -> list[str]:
    out = io.StringIO()
    show_jobs(list_jobs(runs.folder, every=every), Console(file=out, width=width), where="runs")
    return out.getvalue().splitlines()


def test_a_running_job_has_step_loss_time_left_and_nodes(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.start(run, job="7")
    runs.train(run)
    slurm.says("squeue", queue_line("7", "RUNNING", nodes="n[1-2]", begin=runs.slurm_time(-3600)))
    row = stand(run)
    assert (row.state, row.step, row.total_steps, row.loss) == ("running", 1200, 5000, 0.42134)
    assert (row.nodes, row.source) == ("n[1-2]", "squeue")
    assert row.remaining_s == pytest.approx(2280)
    assert shown(runs) == [
        "RUN  JOB  STATE         STEP    LOSS    LEFT  NODES",
        "cnn  7    running  1200/5000  0.4213  38 min  n[1-2]",
    ]


def test_a_job_without_a_heartbeat_since_its_start_is_starting(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.train(run)
    slurm.says("squeue", queue_line("7", "RUNNING", begin=runs.slurm_time(30)))
    assert stand(run).state == "starting"


def test_a_preempted_run_says_when_it_starts_again(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("stopped", "SIGUSR2", 800, run_again=True))
    runs.start(run, job="7")
    runs.end(run, "SIGUSR2")
    runs.requeue(run, "preempted", "7")
    begin = runs.slurm_time(100)
    slurm.says("squeue", queue_line("7", "PENDING", begin=begin, reason="BeginTime"))
    row = stand(run)
    assert (row.state, row.attempts, row.last_cause) == ("preempted", 1, "preempted")
    assert row.note == f"saved at step 800; starts again after {clock(row.estimated_start or 0)} (BeginTime)"
    assert row.remaining_s is None or row.remaining_s > 0


def test_the_hold_after_another_requeue_is_said_with_its_cause(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("stopped", "time limit", 800, run_again=True))
    runs.start(run, job="7")
    runs.requeue(run, "time limit", "7")
    slurm.says("squeue", queue_line("7", "PENDING", begin=runs.slurm_time(100), reason="BeginTime"))
    row = stand(run)
    assert row.state == "requeued" and row.note.startswith(
        "time limit, saved at step 800; starts again after"
    )


def test_a_first_wait_is_no_requeue_and_has_slurms_estimate(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7")
    begin = runs.slurm_time(3 * 86_400)
    slurm.says("squeue", queue_line("7", "PENDING", begin=begin, reason="Priority"))
    row = stand(run)
    assert (row.state, row.slurm_reason) == ("pending", "Priority")
    assert row.note == f"other jobs go first (Priority), starts about {clock(row.estimated_start or 0)}"
    assert json.loads(json.dumps(list_jobs(runs.folder).as_json()))["runs"][0]["slurm_state"] == "PENDING"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "next in line"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained or reserved"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs", "down, drained or reserved"),
        ("DependencyNeverSatisfied", "it will never start"),
        ("JobHeldUser", "scontrol release 7"),
        ("launch failed requeued held", "scontrol release 7"),
        ("QOSMaxJobsPerUserLimit", "you use all the jobs that its QOS gives one user"),
        ("AssocGrpGRESMinutes", "your account uses all the minutes of GPUs"),
        ("AssocGrpCpuLimit", "your account uses all the CPUs"),
        ("QOSMaxWallDurationPerJobLimit", "asks for more time than its QOS gives a job"),
        ("QOSMaxGRESPerUser", "you use all the GPUs (or other devices) that its QOS gives one user"),
        ("QOSMinGRES", "asks for less GPUs"),
        ("MaxMemPerLimit", "asks for more memory"),
        ("SomethingNew", "waits"),
    ],
)
def test_reasons_are_told_in_words_with_slurms_own_beside(reason: str, words: str) -> None:
    said = why_it_waits(reason, "7")
    assert words in said and said.endswith(f"({reason})")


def test_a_held_job_is_not_just_pending(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7")
    slurm.says("squeue", queue_line("7", "PENDING", reason="launch failed requeued held"))
    assert stand(run).state == "held"
    assert "scontrol release 7" in stand(run).note


def test_what_squeue_does_not_list_is_looked_for_where_the_folder_cannot_know(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    moment = runs.slurm_time(-7000)
    slurm.says("sacct", f"7|NODE_FAIL|n1|{moment}|{moment}|{moment}|1:0|None|cnn")
    row = stand(run)
    assert (row.state, row.source) == ("lost", "sacct")
    assert row.note.startswith("SLURM says: a node failed (NODE_FAIL)")


def test_a_job_that_left_the_queue_before_it_began_is_not_waited_for(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    row = stand(runs.make("cnn", job="7_1"))
    assert (row.state, row.is_live) == ("new", False) and "submit it again" in row.note
    slurm.says("squeue", queue_line("7_1", "CANCELLED", name="other"))
    assert stand(runs.make("other", job="7_1")).note == "cancelled before it started"


def test_a_run_that_told_its_end_needs_no_one_else(slurm: FakeSlurm, runs: StandingRuns) -> None:
    runs.make("a", job="7", status=Status("finished", step=5000))
    runs.make("b", job="8", status=Status("failed", "optimizer.lr must be > 0\nmore"))
    assert [(row.run, row.state, row.note) for row in list_jobs(runs.folder).rows] == [
        ("a", "finished", ""),
        ("b", "failed", "optimizer.lr must be > 0"),
    ]
    assert len(slurm.calls("squeue")) == 1 and not slurm.calls("scontrol")


def test_what_ended_more_than_a_day_ago_is_only_counted(slurm: FakeSlurm, runs: StandingRuns) -> None:
    old = runs.now - 90_000
    failed, stopped = Status("failed", time=old), Status("stopped", time=old)
    states = {"a": failed, "b": failed, "c": stopped, "d": Status("finished", time=old)}
    states |= {"e": Status("failed"), "waits": stopped}
    for name, status in states.items():
        run = runs.make(name, status=status)
        info = json.loads((run.path / "run.json").read_text())
        (run.path / "run.json").write_text(json.dumps({**info, "created": old}))
    add_job(run, Submission("7", time=old, script="slurm/0001.sbatch"))
    slurm.says("squeue", queue_line("7", "PENDING", reason="Priority", name="waits"))
    assert {row.run for row in list_jobs(runs.folder).rows} == {"e", "waits"}
    assert shown(runs)[-1] == "2 failed, 1 stopped, 1 finished earlier: --all"
    assert list_jobs(runs.folder).as_json()["hidden"] == {"failed": 2, "stopped": 1, "finished": 1}
    assert {row.run for row in list_jobs(runs.folder, every=True).rows} == states.keys()
    slurm.says("squeue", "")
    (runs.folder / "e" / "run.json").unlink()
    assert shown(runs) == [
        "no run in runs is under way or has ended within a day",
        "2 failed, 2 stopped, 1 finished earlier: --all",
    ]


def test_a_number_that_was_given_to_another_run_since_belongs_to_that_one(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    runs.make("new", job="7")
    old = runs.make("old", status=Status("stopped", "SIGTERM or SIGINT", 3))
    runs.submit(old, "7", ago=9000)
    slurm.says("squeue", queue_line("7", "RUNNING", name="new"))
    assert {row.run: row.state for row in list_jobs(runs.folder).rows} == {
        "new": "starting",
        "old": "stopped",
    }


def test_all_shows_finished_runs_and_my_other_jobs(slurm: FakeSlurm, runs: StandingRuns) -> None:
    runs.make("a", job="7", status=Status("finished", step=5000))
    slurm.says("squeue", queue_line("9", "RUNNING", nodes="n7", name="jupyter"))
    lines = shown(runs, every=True)
    assert "jobs of yours that belong to no run here:" in lines
    assert lines[1].split() == ["a", "7", "finished", "5000"]
    assert lines[-1].split() == ["jupyter", "9", "running", "n7"]
    assert list_jobs(runs.folder).others == []


def test_without_slurm_runs_are_shown_from_their_folders_and_one_line_says_so(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    slurm.removed()
    run = runs.make("here", status=Status("running"))
    runs.train(run)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": 0.0}
    (run.path / "run.lock").write_text(json.dumps(owner))
    runs.make("dead", status=Status("running"))
    lines = shown(runs)
    assert f"  trained here by pid {os.getpid()}, without SLURM" in lines
    assert any(line.startswith("dead  lost") for line in lines)
    assert lines[-1] == NO_SLURM


def test_a_controller_that_is_out_makes_nobody_dead(slurm: FakeSlurm, runs: StandingRuns) -> None:
    for name in ("squeue", "scontrol", "sacct"):
        slurm.fails(name, NO_CONTROLLER)
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.train(run)
    listing = list_jobs(runs.folder)
    assert listing.rows[0].state == "running" and "by its folder" in listing.rows[0].note
    assert "Unable to contact slurm controller" in listing.problem


def test_no_line_is_wider_than_the_terminal_and_a_name_keeps_its_end(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    names = [f"{'a-very-long-name-of-a-run-' * 2}{number:04d}" for number in range(3)]
    for number, name in enumerate(names):
        run = runs.make(name, job=f"4711_{number}", status=Status("running"))
        runs.train(run, step=123_456, total=1_000_000)
    reason = "ReqNodeNotAvail, UnavailableNodes:n[1-2]"
    lines = [queue_line("4711_0", "RUNNING", nodes="n[1-2]", begin=runs.slurm_time(-9))]
    lines += [queue_line(f"4711_{number}", "PENDING", reason=reason) for number in (1, 2)]
    slurm.says("squeue", "\n".join(lines))
    for width in (80, 100, 120, 160, 250):
        table = shown(runs, width=width)
        assert max(map(len, table)) <= width, width
        assert sum("0001  4711_1" in line for line in table) == 1
    assert len(shown(runs, width=250)) == 4  # notes stand beside


def test_the_detail_lists_attempts_and_requeues_with_their_causes(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.start(run, job="7")
    runs.end(run, "SIGUSR2")
    runs.requeue(run, "preempted", "7")
    runs.start(run, attempt=2, job="7", ago=50)
    runs.train(run, attempt=2)
    slurm.says("squeue", queue_line("7", "RUNNING", nodes="n[1-2]", begin=runs.slurm_time(-3600)))
    out = io.StringIO()
    show_detail(run, stand(run), Console(file=out, width=80))
    text = out.getvalue()
    start, requeued = clock(runs.now - 3000), clock(runs.now - 90)
    assert f"    1  {start}  from step 0 to 812 in 48 min on n1, n2 (job 7)\n       SIGUSR2\n" in text
    assert f"       {requeued}  requeued: the job is preempted, without n2\n" in text
    assert "on n1, n2 (job 7)\n       still running\n" in text


def detail(run: RunFolder) -> list[str]:
    out = io.StringIO()
    show_detail(run, stand(run), Console(file=out, width=80))
    return out.getvalue().splitlines()


def test_the_detail_says_where_the_output_and_the_code_are(
    slurm: FakeSlurm, runs: StandingRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.folder.parent)
    run = runs.make("cnn", status=Status("running"))
    add_job(run, Submission("7", nodes=2, code="code/0001"))
    assert not any("output" in line for line in detail(run)), "there is none yet"
    assert "  code      code/0001" in detail(run)
    (run.path / "code").mkdir()
    (run.path / "code" / "0001.json").write_text(json.dumps({"commit": "abc1234" + "0" * 33, "dirty": True}))
    runs.start(run, job="7")
    run.log_path(1, 0).write_text("")
    for rank in (2, 10):
        run.log_path(1, rank).write_text("said\n")
    for node in (0, 1):
        (run.path / "slurm" / f"7_{node}_log.out").write_text("step 10\n")
    lines = detail(run)
    first = lines.index("  output    dist-trainer logs cnn")
    assert lines[first + 1 : first + 6] == [
        "  agents    runs/cnn/slurm/7_0_log.out",
        "            runs/cnn/slurm/7_1_log.out",
        "  ranks     runs/cnn/logs/attempt-0001/rank-2.log",
        "            runs/cnn/logs/attempt-0001/rank-10.log",
        "  code      code/0001, commit abc1234, with changes",
    ]


def test_the_detail_fits_the_terminal_and_has_no_trailing_blanks(
    slurm: FakeSlurm, runs: StandingRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.folder.parent)
    run = runs.make("cnn", job="7", status=Status("failed", "the value of a thing is wrong " * 10))
    runs.start(run, job="7")
    nodes = [f"gpu-node-{number:03d}" for number in range(20)]
    run.record({"event": "start", "attempt": 2, "time": 0.0, "nodes": nodes, "first_step": 1})
    runs.end(run, "failed " * 30, attempt=2)
    lines = detail(run)
    assert len(lines) > 15
    for line in lines:
        assert line == line.rstrip()
        assert len(line) <= 80 or "folder" in line


def test_a_link_of_a_cell_to_a_file_that_is_not_there_yet_is_no_log(runs: StandingRuns) -> None:
    run = runs.make("grid-0001", job="7_1")
    (run.path / "slurm" / "7_1_0_log.out").symlink_to("../../grid/slurm/7_1_0_log.out")
    assert logs_of(run, None, None) == []


def test_lines_of_jobs_of_a_later_version_or_torn_are_read_as_far_as_they_go(runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7")
    with jobs_path(run).open("a") as file:
        file.write('{"job": "8", "time": 1.5, "user": "ada", "nodes": 1, "new": true}\n{"job": "9", "ti')
    assert [job.job for job in jobs_of(run)] == ["7", "8"]
    assert getattr(last_job(run), "user", None) == "ada"


def test_times_are_short() -> None:
    spans = (5, 700, 7300, 100 * 3600, None)
    assert [duration(span) for span in spans] == ["5 s", "12 min", "2 h 02", "4 d 4 h", ""]
    assert shorten("abcdefghij", 6) == "abc…ij"
