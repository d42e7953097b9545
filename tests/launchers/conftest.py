"""A run folder, and launches in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose working folder is the test's."""
    return RunFolder.create(tmp_path / "runs" / "test", "", working_folder=tmp_path)


@pytest.fixture
def launch(command: Callable[..., Command], run: RunFolder) -> Callable[..., Command]:
    """Launch an entry of tests/launchers/entries.py in its own command."""
    script = Path(__file__).with_name("command.py")

    def start(entry: str, workers: int, *settings: str, **options: dict[str, str]) -> Command:
        return command(script, run.path, entry, str(workers), *settings, **options)

    return start
