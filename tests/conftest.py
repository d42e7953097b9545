"""What holds for every test: one thread a process, and nothing left behind."""

import os
import signal

# before torch is imported: two cores, and many processes at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.leaks import Left, look


def pytest_configure(config: pytest.Config) -> None:
    """A test run under nohup ignores hang-ups, and so would every command that the tests start."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


_ALLOWED = Left()
