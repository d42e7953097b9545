"""What holds for every test: one thread a process, and nothing left behind."""

import os
import signal
import sys

# before torch is imported: two cores, and many processes at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launchers.processes import Command, wait_for
from tests.leaks import Left, look


def pytest_configure(config: pytest.Config) -> None:
    """A test run under nohup, or in a script's background, ignores these; so would every command of a test."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """What a fixture of a module or of the session starts may outlive a test."""
    if fixturedef.scope == "function":
        return (yield)
    before = look()
    result = yield
    _ALLOWED.update(look().since(before))
    return result


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail the test that leaks a process, a thread or an environment variable; put the environment right."""
    before = look()
    yield
    left = before.wait_for_end(look, allowed=_ALLOWED)
    before.restore_environment()
    assert not left, f"left behind: {left}"


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start a command in the test's folder, python's or a script's; what it leaves behind fails the test."""
    started: list[Command] = []

    def start(*arguments: str | Path, **options: dict[str, str]) -> Command:
        program = [] if str(arguments[0]).endswith(".sh") else [sys.executable]
        started.append(Command(*program, *map(str, arguments), folder=tmp_path, **options))
        return started[-1]

    yield start
    try:
        for one in started:
            assert one.process.poll() is not None, "the command itself is still there"
            wait_for(lambda one=one: not one.others(), timeout_s=2, what=f"left behind: {one.others()}")
    finally:
        for one in started:
            one.end()


_ALLOWED = Left()
