"""The commands in launch/, on this machine's processor, with the real worker."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import REPOSITORY, Command
from tests.launchers.test_nodes import free_port

pytestmark = pytest.mark.timeout(120)
SETTINGS = ["tracking.uri=null", "train.epochs=null", "train.steps=3", "data.split=null"]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")


@pytest.fixture
def start(command: Callable[..., Command]) -> Callable[..., Command]:
    """Start a script as a user with the environment activated does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def begin(script: str, **variables: str) -> Command:
        environment = {"PATH": path, "OMP_NUM_THREADS": "1", **variables}
        return command(REPOSITORY / "launch" / script, QUICKSTART, *SETTINGS, environment=environment)

    return begin


def has_finished(folder: Path, *commands: Command) -> None:
    for command in commands:
        assert command.finish(100) == 0, command.stdout + command.stderr
    run = RunFolder.open(folder / "runs" / "quickstart")
    assert (run.read_status().state, run.read_status().step) == ("finished", 3)
    assert [line["world_size"] for line in run.attempts() if line["event"] == "start"] == [2]


def test_cpu(tmp_path: Path, start: Callable[..., Command]) -> None:
    has_finished(tmp_path, start("cpu.sh"))


def test_one_gpu_node(tmp_path: Path, start: Callable[..., Command]) -> None:
    has_finished(tmp_path, start("one_gpu_node.sh", WORKERS="2"))


def test_several_nodes(tmp_path: Path, start: Callable[..., Command]) -> None:
    place = {"NODES": "2", "HEAD": f"127.0.0.1:{free_port()}", "WORKERS": "1"}
    has_finished(tmp_path, *(start("several_nodes.sh", **place) for _ in range(2)))
