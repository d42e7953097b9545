"""What holds for every test: one thread a process, and nothing left behind."""

import os
import shutil
import signal
import sys
import tempfile

# before torch is imported: two cores, and many processes at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import table
from tests.faults.ledger import LEDGER
from tests.launchers.processes import Command, wait_for
from tests.leaks import Left, look


def pytest_configure(config: pytest.Config) -> None:
    """A test run under nohup, or in a script's background, ignores these; so would every command of a test."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if LEDGER not in os.environ:  # the processes of pytest -n inherit it
        path = Path(tempfile.mkdtemp(prefix="faults-"), "ledger.jsonl")
        os.environ[LEDGER] = str(path)
        config.add_cleanup(lambda: _forget_ledger(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest -n, files that may take long come first: none of them begins when all others are over."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    limits_s: Counter[Path] = Counter()
    for item in items:
        mark = item.get_closest_marker("timeout")
        limits_s[item.path] += int(mark.args[0]) if mark else 1
    items.sort(key=lambda item: limits_s[item.path], reverse=True)


def _forget_ledger(path: Path) -> None:
    del os.environ[LEDGER]
    shutil.rmtree(path.parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests of faults tried, and how often something was lost."""
    lines = table.read_lines(Path(os.environ[LEDGER]))
    for rows in (table.fault_table(lines), table.trial_table(lines)):
        if rows:
            terminalreporter.write_line("\n" + "\n".join(rows))


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
            wait_for(lambda one=one: not one.others(), timeout_s=20, what=f"left behind: {one.others()}")
    finally:
        for one in started:
            one.end()


_ALLOWED = Left()
