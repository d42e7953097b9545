"""A run folder: created once, written by one, readable after any crash."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.adapters.git import code_version
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder, Status, find_run

HOLD = """
import sys, time
from dist_trainer.run_folder import RunFolder
with RunFolder.open(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "mine", "name: mine\n", working_folder=tmp_path)


@contextmanager
def holder(run: RunFolder) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_new_run_can_be_opened_and_found_by_name_and_by_path(run: RunFolder, tmp_path: Path) -> None:
    assert RunFolder.open(run.path) == run
    assert find_run("mine", tmp_path / "runs") == run
    assert find_run(run.path, tmp_path) == run
    assert run.config_path.read_text() == "name: mine\n"
    assert run.info().working_folder == tmp_path
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_run_is_never_created_over_another(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a run already"):
        RunFolder.create(run.path, "other: 1\n", working_folder=tmp_path)
    assert run.config_path.read_text() == "name: mine\n"


@pytest.mark.parametrize("name", ["-rf", ".hidden", "a b", "x" * 65, "a\nb", "é", "a%2f", "ok\n"])
def test_a_bad_name_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name must match"):
        RunFolder.create(tmp_path / name, "", working_folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_creation_cut_short_is_no_run_and_can_be_repeated(run: RunFolder, tmp_path: Path) -> None:
    (run.path / "run.json").unlink()
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder.open(run.path)
    assert RunFolder.create(run.path, "again: 1\n", working_folder=tmp_path).info().run_id


def test_an_unknown_run_is_named_with_near_ones(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is mine"):
        find_run("mime", tmp_path / "runs")
    with pytest.raises(UsageError, match="no run is there yet"):
        find_run("mine", tmp_path / "elsewhere")
    for name in "bcdefgh":
        RunFolder.create(tmp_path / "many" / name, "", working_folder=tmp_path)
    with pytest.raises(UsageError, match="there is b, c, d, e, f, and 2 more"):
        find_run("nosuch", tmp_path / "many")


def test_info_changes_one_field_and_keeps_the_rest(run: RunFolder) -> None:
    before = run.info()
    run.update_info(mlflow_run_id="abc")
    assert run.info().mlflow_run_id == "abc"
    assert run.info().run_id == before.run_id


def test_fence_numbers_count_up_and_nobody_gets_the_same(run: RunFolder) -> None:
    assert run.highest_fence() == 0
    assert run.new_fence({"pid": 1}) == 1
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(run.new_fence({}))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(2, 18))
    assert run.highest_fence() == 17
    assert json.loads((run.path / "fence" / "0001.json").read_text()) == {"pid": 1}


def test_attempts_survive_a_line_torn_by_a_crash(run: RunFolder) -> None:
    assert run.attempts() == []
    first = {"event": "start", "attempt": 1, "time": 1.5}
    run.record(first)
    with run.attempts_path.open("a") as file:
        file.write('{"event": "end", "att')
    assert run.attempts() == [first]
    run.record({**first, "attempt": 2})
    assert [line["attempt"] for line in run.attempts()] == [1, 2]


@pytest.mark.parametrize(
    "fields",
    [
        {"first_step": "5"},
        {"last_step": "5"},
        {"first_step": None},
        {"attempt": "2"},
        {"attempt": True},
        {"exit_code": 1.0},
        {"time": "1.5"},
        {"nodes": "n1"},
        {"last_step": 1 << 70},
    ],
)
def test_a_line_whose_values_are_of_another_type_is_no_attempts(
    run: RunFolder, fields: dict[str, Any]
) -> None:
    whole = {"event": "start", "attempt": 1, "time": 1, "first_step": 5, "last_step": None, "nodes": ["n1"]}
    run.record({**whole, **fields})
    assert run.attempts() == [], "it is used as it stands afterwards"
    run.record({**whole, "of a newer version": {"a": 1}})
    assert [line["first_step"] for line in run.attempts()] == [5]


def test_status_is_new_before_it_is_written_and_keeps_every_float(run: RunFolder) -> None:
    assert run.status.state == "new"
    results = {"test/loss": math.nan, "test/worst": -math.inf, "test/accuracy": 0.1}
    run.write_status(Status("finished", step=7, results=results))
    read = run.read_status()
    assert (read.state, read.step) == ("finished", 7)
    assert math.isnan(read.results["test/loss"])
    assert (read.results["test/worst"], read.results["test/accuracy"]) == (-math.inf, 0.1)
    json.loads(run.status_path.read_text(), parse_constant=lambda word: pytest.fail(f"not JSON: {word}"))


def test_a_reader_never_sees_half_a_status(run: RunFolder) -> None:
    process = multiprocessing.get_context("fork").Process(target=_rewrite_status, args=(run,))
    run.write_status(Status("running", "x" * 50_000))
    process.start()
    for _ in range(300):
        assert len(run.read_status().reason) == 50_000
    process.kill()
    process.join()


def _rewrite_status(run: RunFolder) -> None:
    for step in range(100_000):
        run.write_status(Status("running", "x" * 50_000, step=step))


def test_the_first_failed_rank_is_the_first_error(run: RunFolder) -> None:
    attempt = run.new_fence({})
    assert run.read_errors(attempt) == []
    for rank in (2, 0):
        try:
            raise ValueError(f"rank {rank} broke")
        except ValueError as error:
            run.write_error(attempt, rank, error=error, step=5, exit_code=1)
        time.sleep(0.01)
    first, second = run.read_errors(attempt)
    assert (first.rank, first.type, first.message, first.exit_code) == (2, "ValueError", "rank 2 broke", 1)
    assert "raise ValueError" in first.traceback
    assert second.rank == 0


def test_a_second_live_writer_is_told_who_the_first_is(run: RunFolder) -> None:
    with holder(run) as process:
        told = rf"run mine is being trained by pid {process.pid} on host {socket.gethostname()} since .*"
        with (
            pytest.raises(UsageError, match=told + f"wait for it, or stop it with kill {process.pid}"),
            run.lock(),
        ):
            pass


def test_the_lock_of_a_killed_writer_is_free(run: RunFolder) -> None:
    with holder(run) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with run.lock():
            pass


def test_the_lock_is_released_when_its_holder_fails(run: RunFolder) -> None:
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    assert (run.path / "run.lock").read_bytes() == b""
    with run.lock():
        pass


def test_a_writer_on_another_host_is_believed_only_while_its_heart_beats(run: RunFolder) -> None:
    owner = {"pid": 7, "host": "node-9", "since": 0.0}
    (run.path / "run.lock").write_text(json.dumps(owner))
    run.heartbeat_path(0).write_bytes(b"step 1")
    beat = threading.Timer(0.3, lambda: run.heartbeat_path(0).write_bytes(b"step 2"))
    beat.start()
    told = r"pid 7 on host node-9 since .* stop it with ssh node-9 kill 7"
    with pytest.raises(UsageError, match=told), run.lock(watch_s=5):
        pass
    beat.join()
    with run.lock(watch_s=0.3):
        assert json.loads((run.path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_folder_moved_aside_does_not_keep_the_lock_of_its_successor(run: RunFolder, tmp_path: Path) -> None:
    with holder(run):
        run.path.rename(run.path.with_name("mine.old"))
        again = RunFolder.create(run.path, "", working_folder=tmp_path)
        with again.lock():
            pass


def test_the_code_version_names_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert code_version(tmp_path) == {}
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    version = code_version(tmp_path)
    assert len(version["commit"]) == 40
    assert version["dirty"] is False
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    assert code_version(tmp_path)["dirty"] is True


def test_the_module_needs_no_torch() -> None:
    code = "import sys, dist_trainer.run_folder; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


HELD_BY_A_JOB = """
import sys, time
from dist_trainer.run_folder import RunFolder
with RunFolder.open(sys.argv[1]).lock(job="7"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_holder_of_a_lock_is_named_by_its_job_and_passed_over_once_that_is_over(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "test", "", working_folder=tmp_path)
    with subprocess.Popen([sys.executable, "-c", HELD_BY_A_JOB, run.path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            asked: list[str] = []
            with (
                pytest.raises(UsageError, match=r"by SLURM job 7 .*dist-trainer cancel test"),
                run.lock(job="8"),
            ):
                pass
            with run.lock(job="8", job_is_over=lambda job: not asked.append(job)):
                owner = json.loads((run.path / "run.lock").read_text())
                assert (owner["job"], owner["pid"]) == ("8", os.getpid())
                assert holder.poll() is None
            assert asked == ["7"]
        finally:
            holder.kill()
    with run.lock():
        pass


def test_a_run_id_that_leads_elsewhere_is_refused(run: RunFolder) -> None:
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "../another"}))
    with pytest.raises(DistTrainerError, match=r"run_id must be hexadecimal digits, got '\.\./another'"):
        run.checkpoint_url("s3://bucket/runs")
