"""Every command that lists, checks or does something answers a script with one JSON document."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.run_folder import RunFolder
from tests.test_cli import CONFIG

WORDS_ALONE = {("logs",)}  # it prints what a run has printed, as it was printed


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def test_the_walk_sees_the_commands() -> None:
    found = {path for path, _ in commands()}
    assert {("train",), ("init",), ("tune", "lr"), ("checkpoint", "list"), ("sweep", "status")} <= found


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_json(path: tuple[str, ...]) -> None:
    options = {name for option in dict(commands())[path].params for name in option.opts}
    assert ("--json" in options) == (path not in WORDS_ALONE)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run that was never trained, and its configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    RunFolder.create(tmp_path / "runs" / "run", CONFIG, working_folder=tmp_path)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "line",
    [
        "jobs",
        "jobs run",
        "checkpoint list run",
        "checkpoint verify run",
        "config show c.yaml",
        "config schema",
        "config check c.yaml seed=x",
        "drill --list",
        "explain run",
        "init",
        "init new",
        "init --example",
        "cancel nosuch",
        "sweep status nosuch",
        "sync nosuch",
        "tune lr nosuch.yaml",
    ],
)
def test_standard_output_is_one_document(line: str) -> None:
    done = CliRunner().invoke(app, [*line.split(), "--json"])
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit), done.exception
    assert isinstance(json.loads(done.stdout), dict)
