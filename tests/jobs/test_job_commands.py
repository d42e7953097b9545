"""logs, cancel and waiting for the end, as commands over runs that agents left, with stand-ins for SLURM."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.jobs.listing import Queue, stand_in_queue
from dist_trainer.run_folder import Status
from dist_trainer.slurm import wait
from dist_trainer.slurm.scheduler import NO_SLURM
from dist_trainer.slurm.submissions import Submission, add_job
from dist_trainer.slurm.submit_checks import refuse_live_job
from dist_trainer.slurm.wait import wait_for_end
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder
from dist_trainer.tracking.mlflow_sync import sync
from tests.jobs.standing_runs import StandingRuns
from tests.slurm.stand_ins import INVALID, NO_CONTROLLER, FakeSlurm, queue_line


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.chdir(tmp_path)
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("squeue", "")
    return fake


@pytest.fixture
def runs(tmp_path: Path) -> StandingRuns:
    return StandingRuns(tmp_path)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


class Following:
    """`dist-trainer logs RUN -f` beside the test."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "dist_trainer.cli", "logs", *arguments, "-f"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def until(self, text: str, within_s: float = 20) -> None:
        deadline = time.monotonic() + within_s
        while text not in self.text:
            assert time.monotonic() < deadline, f"waited for {text!r}: {self.text!r}"
            time.sleep(0.05)

    def end(self, within_s: float = 20) -> int:
        code = self.process.wait(within_s)
        self._reader.join()
        return code


@pytest.fixture
def follow() -> Iterator[Callable[..., Following]]:
    started: list[Following] = []

    def start(*arguments: str) -> Following:
        started.append(Following(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.end()
        assert one.process.stdout is not None
        one.process.stdout.close()


def test_the_last_attempts_rank_0_is_printed_under_its_name(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", status=Status("finished"))
    for attempt in (1, 2):
        runs.start(run, attempt=attempt)
    assert invoke("logs", "cnn").stdout == f"==> {run.log_path(2, 0)} <==\nrank 0 of attempt 2\n"
    assert "attempt 1" in invoke("logs", "cnn", "--attempt", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rank", "4"], "run cnn, attempt 2, has no log of rank 4; ranks that have one: 0\n"),
        (["--attempt", "7"], "run cnn has no logs of attempt 7; those there: 1, 2\n"),
        (["--rank", "agent"], "has no log of an agent"),
        (["--rank", "-1"], "--rank must be a rank's number, or 'agent'"),
    ],
)
def test_a_log_that_is_not_there_names_those_that_are(
    slurm: FakeSlurm, runs: StandingRuns, arguments: list[str], error: str
) -> None:
    run = runs.make("cnn", status=Status("finished"))
    for attempt in (1, 2):
        runs.start(run, attempt=attempt)
    done = invoke("logs", "cnn", *arguments)
    assert done.exit_code == 2 and error in done.stderr


def test_the_agents_of_the_last_job_are_printed_one_after_the_other(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    run = runs.make("cnn", job="7", status=Status("finished"))
    runs.submit(run, "120_3", ago=10)
    for name in ("7_0", "120_3_0", "120_3_1", "120_31_0"):
        (run.path / "slurm" / f"{name}_log.out").write_text(f"agent {name}\n")
    out = invoke("logs", "cnn").stdout
    assert invoke("logs", "cnn", "--rank", "agent").stdout == out
    assert out.splitlines()[1::3] == ["agent 120_3_0", "agent 120_3_1"]
    runs.start(run, attempt=1, job="7")
    assert "agent 7_0" in invoke("logs", "cnn", "--rank", "agent", "--attempt", "1").stdout


def test_a_job_that_waits_is_said_with_and_without_an_earlier_log(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    run = runs.make("cnn", job="7")
    slurm.says("squeue", queue_line("7", "PENDING", reason="Priority"))
    waits = "(pending): other jobs go first (Priority)\n"
    done = invoke("logs", "cnn")
    assert (done.exit_code, done.stdout) == (0, f"job 7 has not begun yet {waits}")
    runs.start(run, job="6")
    run.write_status(Status("stopped", "SIGUSR2", 800))
    assert invoke("logs", "cnn", "--rank", "0").stdout.endswith(
        f"rank 0 of attempt 1\n\njob 7 waits to go on {waits}"
    )


def test_following_goes_over_attempts_and_ends_with_the_run(
    slurm: FakeSlurm, runs: StandingRuns, follow: Callable[..., Following]
) -> None:
    slurm.says("squeue", queue_line("7", "PENDING", reason="Priority"))
    run = runs.make("cnn", job="7")
    following = follow("cnn", "--rank", "0")
    following.until("job 7 has not begun yet (pending)")
    runs.start(run, job="7")
    slurm.says("squeue", queue_line("7", "RUNNING"))
    run.write_status(Status("running"))
    following.until("rank 0 of attempt 1")
    with run.log_path(1, 0).open("a") as file:
        file.write("last words\n")
    runs.start(run, attempt=2, job="7")
    following.until("attempt 2 has begun")
    slurm.fails("squeue", INVALID)
    run.write_status(Status("finished", step=5000))
    assert following.end() == 0
    one, two = run.log_path(1, 0), run.log_path(2, 0)
    assert following.text.split("\n", 2)[2] == (
        f"==> {one} <==\nrank 0 of attempt 1\nlast words\n\nattempt 2 has begun\n\n"
        f"==> {two} <==\nrank 0 of attempt 2\n\nrun cnn: finished at step 5000\n"
    )


def test_ctrl_c_ends_following_and_says_that_the_run_goes_on(
    slurm: FakeSlurm, runs: StandingRuns, follow: Callable[..., Following]
) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.start(run, job="7")
    slurm.says("squeue", queue_line("7", "RUNNING"))
    following = follow("cnn", "--rank", "0")
    following.until("rank 0 of attempt 1")
    following.process.send_signal(signal.SIGINT)
    assert following.end() == 0
    assert following.text.endswith("\nno longer following; the run goes on as it was\n")


def test_a_dead_run_is_not_followed_for_ever(
    slurm: FakeSlurm, runs: StandingRuns, follow: Callable[..., Following]
) -> None:
    slurm.removed()
    runs.start(runs.make("cnn", status=Status("running")))
    following = follow("cnn", "--rank", "0")
    assert following.end() == 0
    assert "run cnn: lost; ended without a word" in following.text


def test_a_run_that_is_to_run_again_is_followed_while_slurm_is_silent(
    slurm: FakeSlurm, runs: StandingRuns, follow: Callable[..., Following]
) -> None:
    run = runs.make("cnn", job="7", status=Status("stopped", "time limit", 800, run_again=True))
    runs.start(run, job="7")
    for name in ("squeue", "scontrol", "sacct"):
        slurm.fails(name, NO_CONTROLLER)
    following = follow("cnn", "--rank", "0")
    following.until("still following")
    with pytest.raises(subprocess.TimeoutExpired):
        following.process.wait(1)
    run.write_status(Status("finished", step=5000))
    assert following.end() == 0
    assert "run cnn: finished at step 5000" in following.text


def test_a_waiting_job_is_taken_out_and_its_run_is_stopped(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7")
    pending, gone = queue_line("7", "PENDING"), queue_line("7", "CANCELLED")
    slurm.says("squeue", {"--states=all": gone, "": pending})
    done = invoke("cancel", "cnn")
    assert done.exit_code == 0 and "cnn: job 7 is taken out of the queue" in done.stdout
    assert slurm.calls("scancel")[0].split()[0] == "7"
    status = run.read_status()
    assert (status.state, status.reason, status.run_again) == (
        "stopped",
        "cancelled before it started",
        False,
    )


def test_mlflow_is_told_of_a_cancel_that_no_worker_sees(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("stopped", "time limit", 800, run_again=True))
    run.config_path.write_text("name: cnn\ntracking: {uri: 'sqlite:///mlflow.db'}\n")
    runs.train(run)
    sync(run)
    slurm.says("squeue", {"--states=all": queue_line("7", "CANCELLED"), "": queue_line("7", "PENDING")})
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("SCHEDULED",)]
        assert invoke("cancel", "cnn").exit_code == 0
        assert database.execute("select status from runs").fetchall() == [("KILLED",)]
    database.close()


def test_an_empty_log_says_where_the_progress_is(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("finished"))
    runs.start(run, job="7")
    run.log_path(1, 0).write_text("")
    (run.path / "slurm" / "7_0_log.out").write_text("step 10\n")
    hint = "(rank 0 has printed nothing; the progress: dist-trainer logs cnn --rank agent)"
    assert invoke("logs", "cnn", "--rank", "0").stdout.splitlines()[1:] == [hint]


def test_a_failed_run_whose_next_job_is_cancelled_stays_failed(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("failed", "no"))
    slurm.says("squeue", {"--states=all": queue_line("7", "CANCELLED"), "": queue_line("7", "PENDING")})
    assert invoke("cancel", "cnn").exit_code == 0
    assert run.read_status().state == "failed"


def test_a_running_job_is_told_and_writes_its_status_itself(slurm: FakeSlurm, runs: StandingRuns) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    slurm.says("squeue", queue_line("7", "RUNNING", nodes="n1"))
    done = invoke("cancel", "cnn", "--json")
    assert json.loads(done.stdout)["runs"][0]["done"] == "told"
    assert run.read_status().state == "running"


def test_the_cells_of_a_sweep_are_cancelled_but_for_those_that_are_finished(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    for number, state in enumerate(("finished", "running")):
        runs.make(f"grid-{number:04d}", job=f"7_{number}", status=Status(state))
    cells = [Cell(number, {}, f"grid-{number:04d}", "") for number in range(2)]
    SweepFolder.create("runs/grid", Sweep("grid", ".", {}, cells))
    slurm.says("squeue", queue_line("7_1", "RUNNING", nodes="n1"))
    done = invoke("cancel", "grid", "--json")
    assert [answer["run"] for answer in json.loads(done.stdout)["runs"]] == ["grid-0001"]


def test_a_name_that_is_not_there_keeps_no_other_from_being_cancelled(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    runs.make("cnn", job="7", status=Status("running"))
    slurm.says("squeue", queue_line("7", "RUNNING", nodes="n1"))
    done = invoke("cancel", "nope", "cnn")
    assert done.exit_code == 2
    assert "job 7 is told to stop" in done.stdout and "no run 'nope'" in done.stderr


def test_each_run_has_its_own_answer_and_the_worst_is_the_exit_code(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    runs.make("over", job="6", status=Status("finished"))
    runs.make("cnn", job="7", status=Status("running"))
    here = runs.make("here", status=Status("running"))
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": 0.0}
    (here.path / "run.lock").write_text(json.dumps(owner))
    slurm.says(
        "squeue", {"--jobs=6": queue_line("6", "COMPLETED", name="over"), "": queue_line("7", "RUNNING")}
    )
    done = invoke("cancel", "over", "here", "cnn")
    assert done.exit_code == 2
    assert "over: nothing to cancel: job 6 is over (COMPLETED)" in done.stdout
    assert "cnn: job 7 is told to stop; it saves first" in done.stdout
    assert f"here: it is trained here by pid {os.getpid()}, not by SLURM" in done.stderr
    slurm.fails("scancel", "scancel: error: Kill job error on job id 7: Access/permission denied")
    refused = invoke("cancel", "cnn")
    assert refused.exit_code == 1 and "Access/permission denied" in refused.stderr


@pytest.mark.parametrize(
    "other",
    [
        queue_line("7", "RUNNING", name="jupyter"),
        queue_line("7", "RUNNING", submitted="2020-01-01T00:00:00"),
    ],
    ids=["another name", "older than the submission"],
)
def test_a_job_that_has_a_runs_old_number_is_left_alone(
    other: str, slurm: FakeSlurm, runs: StandingRuns
) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    slurm.says("squeue", other)
    done = invoke("cancel", "cnn")
    assert "cnn: nothing to cancel: job 7 is over (SLURM knows it no more)" in done.stdout
    assert not slurm.calls("scancel")
    refuse_live_job(run)
    assert stand_in_queue(run, Queue()).state == "lost"


def test_a_requeued_job_an_arrays_element_and_a_plain_scripts_job_are_the_runs(
    slurm: FakeSlurm, runs: StandingRuns
) -> None:
    later = runs.slurm_time(3000)
    runs.make("cnn", job="7", status=Status("running"))
    cell = runs.make("grid-0001", job="8_1", status=Status("running"))
    cell.update_info(sweep=str(runs.folder / "grid"))
    plain, named = runs.make("plain", status=Status("running")), runs.make("named", status=Status("running"))
    for run, job in ((plain, "9"), (named, "10")):
        add_job(run, Submission(job, time=runs.now - 5000))
    lines = [
        queue_line("7", "RUNNING", submitted=later),
        queue_line("8_1", "RUNNING", name="grid", submitted=later),
        queue_line("9", "RUNNING", name="dist-trainer", submitted=later),
        queue_line("10", "RUNNING", name="what I like", submitted=runs.slurm_time(-5100)),
    ]
    slurm.says("squeue", "\n".join(lines))
    for name in ("cnn", "grid-0001", "plain", "named"):
        assert "is told to stop" in invoke("cancel", name).stdout, name
    slurm.says("squeue", queue_line("10", "RUNNING", name="what I like", submitted=later))
    assert "nothing to cancel" in invoke("cancel", "named").stdout
    runs.requeue(named, "preempted", "10")
    assert "is told to stop" in invoke("cancel", "named").stdout


@pytest.mark.parametrize("command", ["jobs", "logs"])
@pytest.mark.parametrize("name", ["grid", "runs/grid"])
def test_of_a_sweep_the_command_that_shows_it_is_named(
    slurm: FakeSlurm, runs: StandingRuns, command: str, name: str
) -> None:
    SweepFolder.create("runs/grid", Sweep("grid", ".", {}, [Cell(0, {}, "grid-0000", "")]))
    done = invoke(command, name)
    shows = "dist-trainer sweep status grid shows its cells, which are runs such as grid-0000"
    assert (done.exit_code, done.stderr) == (2, f"{name} is a sweep: {shows}\n")


def test_cancel_without_slurm_is_one_line(slurm: FakeSlurm, runs: StandingRuns) -> None:
    slurm.removed()
    runs.make("cnn", job="7", status=Status("running"))
    done = invoke("cancel", "cnn")
    assert done.exit_code == 1 and done.stderr == f"cnn: {NO_SLURM}\n"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (Status("finished"), 0, 0),
        (Status("stopped", "time limit", 3), 0, 75),
        (Status("do-not-requeue", "no progress"), 93, 93),
        (Status("failed", "optimizer.lr must be > 0"), 2, 2),
        (Status("failed", "no good checkpoint"), 65, 65),
        (Status("failed", "boom"), 1, 1),
    ],
    ids=lambda value: value.state if isinstance(value, Status) else "",
)
def test_waiting_ends_with_the_runs_own_exit_code(
    slurm: FakeSlurm, runs: StandingRuns, status: Status, code: int, expected: int
) -> None:
    run = runs.make("cnn", job="7", status=status)
    runs.end(run, status.state, code=code)
    slurm.says("squeue", queue_line("7", "COMPLETED"))
    assert wait_for_end(run, ask_every_s=0.05) == expected


def end_of_job(slurm: FakeSlurm, after_s: float) -> threading.Timer:
    timer = threading.Timer(after_s, slurm.says, ("squeue", queue_line("7", "COMPLETED")))
    timer.start()
    return timer


def test_waiting_goes_over_requeues_and_outages(
    slurm: FakeSlurm, runs: StandingRuns, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runs.make("cnn", job="7", status=Status("stopped", "SIGUSR2", 3, run_again=True))
    for name in ("squeue", "scontrol", "sacct"):
        slurm.fails(name, NO_CONTROLLER)
    timers = [
        threading.Timer(0.6, slurm.says, ("squeue", queue_line("7", "PENDING", reason="BeginTime"))),
        threading.Timer(1.2, run.write_status, (Status("finished"),)),
        end_of_job(slurm, 1.4),
    ]
    for timer in timers[:2]:
        timer.start()
    assert wait_for_end(run, ask_every_s=0.1) == 0
    for timer in timers:
        timer.join()
    assert capfd.readouterr().err.count("Unable to contact slurm controller") == 1


def test_a_job_that_vanished_without_a_word_is_1_with_slurms_words(
    slurm: FakeSlurm,
    runs: StandingRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wait, "_WORD_WITHIN_S", 0.2)
    run = runs.make("cnn", job="7", status=Status("failed", "an older failure", time=runs.now - 9999))
    slurm.says("squeue", queue_line("7", "NODE_FAIL", reason="NodeDown"))
    assert wait_for_end(run, ask_every_s=0.05) == 1
    error = capsys.readouterr().err
    assert "SLURM says NODE_FAIL, NodeDown: a node failed" in error and "older" not in error
    slurm.fails("squeue", INVALID)
    assert wait_for_end(run, ask_every_s=0.05) == 1
    assert "SLURM knows it no more" in capsys.readouterr().err


def test_ctrl_c_while_waiting_leaves_the_job(
    slurm: FakeSlurm,
    runs: StandingRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(job: str) -> None:
        raise KeyboardInterrupt

    run = runs.make("cnn", job="7")
    monkeypatch.setattr(wait, "find", interrupt)
    assert wait_for_end(run) == 130
    assert "no longer waiting; job 7 goes on" in capsys.readouterr().err
    assert not slurm.calls("scancel")


HEAVY = """
import sys
from dist_trainer.cli import app
import dist_trainer.slurm.wait
try:
    app(sys.argv[1:])
finally:
    heavy = {"torch", "mlflow", "numpy", "fsspec", "submitit", "matplotlib", "torchvision"}
    print("heavy:", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", ["jobs", "jobs --json --all", "jobs cnn", "logs cnn", "cancel cnn"])
def test_looking_at_jobs_imports_nothing_heavy(slurm: FakeSlurm, runs: StandingRuns, arguments: str) -> None:
    run = runs.make("cnn", job="7", status=Status("running"))
    runs.start(run, job="7")
    runs.train(run)
    slurm.says("squeue", queue_line("7", "RUNNING"))
    command = [sys.executable, "-W", "error", "-c", HEAVY, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == "heavy:\n"
