"""The check that every test leaves nothing behind: it must catch what leaks, and only that."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.processes import wait_for
from tests.leaks import Left, look

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
ORPHAN = """
import subprocess, sys
print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, start_new_session=True).pid)
"""


def test_a_process_that_is_left_is_found() -> None:
    before = look()
    with subprocess.Popen(SLEEP) as process:
        left = look().since(before)
        process.kill()
    assert [pid for pid, _ in left.processes] == [process.pid]
    assert "time.sleep(60)" in str(left)
    assert not look().since(before)


def test_an_orphan_in_a_session_of_its_own_is_found() -> None:
    before = look()
    command = [sys.executable, "-c", ORPHAN, *SLEEP]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    # exec closes the pipe for which Popen waits before the new program has an environment in /proc
    wait_for(lambda: Path(f"/proc/{pid}/environ").read_bytes(), timeout_s=5)
    left = look().since(before)
    os.kill(pid, 9)
    assert [pid for pid, _ in left.processes] == [pid]


def test_a_fork_is_found() -> None:
    before = look()
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    left = look().since(before)
    process.kill()
    process.join()
    assert [pid for pid, _ in left.processes] == [process.pid]


def test_a_thread_and_a_variable_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = look()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left-over")
    thread.start()
    monkeypatch.setenv("LEFT_OVER", "1")
    assert str(look().since(before)) == "thread left-over; variable LEFT_OVER=1"
    end.set()
    left = before.wait_for_end(look, allowed=Left(variables={"LEFT_OVER": "1"}))
    thread.join()
    assert not left


@pytest.fixture(scope="module")
def long_lived(request: pytest.FixtureRequest) -> Iterator[int]:
    with subprocess.Popen(SLEEP) as process:
        yield process.pid
        process.kill()


def test_what_a_module_wide_fixture_starts_may_stay(request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue("long_lived")
