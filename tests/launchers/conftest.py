"""A run folder, and commands whose every process is gone after the test."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command, wait_for


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose working folder is the test's."""
    return RunFolder.create(tmp_path / "runs" / "test", "", working_folder=tmp_path)


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


@pytest.fixture
def launch(command: Callable[..., Command], run: RunFolder) -> Callable[..., Command]:
    """Launch an entry of tests/launchers/entries.py in its own command."""
    script = Path(__file__).with_name("command.py")

    def start(entry: str, workers: int, *settings: str, **options: dict[str, str]) -> Command:
        return command(script, run.path, entry, str(workers), *settings, **options)

    return start
