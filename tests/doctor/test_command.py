"""The command as it is typed: on a good machine, on a bad one, for people and for programs."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.screen import summary

pytestmark = pytest.mark.timeout(120)
BAD = """\
launch:
  device: cpu
  workers_per_node: 2
  env: {GLOO_SOCKET_IFNAME: nosuch0}
"""


def doctor(folder: Path, *words: str, limit: int | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dist_trainer.cli", "doctor", *words]
    if limit is not None:
        command = ["bash", "-c", f'ulimit -Sn {limit} && exec "$@"', "bash", *command]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def here(folder: Path) -> dict[str, Any]:
    """What it says of this machine, which may have its own troubles, but none with these."""
    done = doctor(folder, "--json", "launch.device=cpu")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == int(found["broken"] > 0), done.stderr
    assert done.stderr == ""
    return found


def test_every_area_has_a_line(here: dict[str, Any]) -> None:
    states = {each["name"]: each["state"] for each in here["findings"]}
    for name in ("python", "torch", "gloo on lo", "run folder", "clock", "checkpoints", "MLflow"):
        assert states[name] == "fine", here
    assert states["CUDA"] == states["NCCL"] == "skipped"
    assert {
        "packages",
        "CPU cores",
        "/dev/shm",
        "open files",
        "file system",
        "free space",
        "SLURM",
    } <= states.keys()


def test_an_all_reduce_over_lo_was_measured(here: dict[str, Any]) -> None:
    (lo,) = [each for each in here["findings"] if each["name"] == "gloo on lo"]
    assert lo["measured"]["latency_us"] > 0
    assert lo["measured"]["bandwidth_gb_s"] > 0


def test_counts_are_those_of_the_findings(here: dict[str, Any]) -> None:
    for state in ("fine", "skipped", "warning", "broken"):
        assert here[state] == sum(each["state"] == state for each in here["findings"])


def test_nothing_is_left_in_the_folder(here: dict[str, Any], folder: Path) -> None:
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The screen of a machine with several troubles at once."""
    place = tmp_path_factory.mktemp("bad")
    (place / "bad.yaml").write_text(BAD)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        done = doctor(place, "bad.yaml", uri, "data.num_workers=64", "--runs", "/proc/runs", limit=64)
    assert done.returncode == 1, done.stdout
    assert done.stderr == ""
    yield done.stdout


def test_all_troubles_are_found_at_once(bad: str) -> None:
    for line in (
        r"^GLOO_SOCKET_IFNAME +broken +no interface nosuch0 that is up here$",
        r"^open files +broken +64 for a process$",
        r"^run folder +broken +/proc: ",
        r"^MLflow +warning +http://127\.0\.0\.1:\d+ took the connection",
        r"^CPU cores +warning ",
        r"^gloo on lo +fine +\d",
    ):
        assert re.search(line, bad, re.MULTILINE), f"{line}\n{bad}"


def test_each_trouble_is_followed_by_what_to_do(bad: str) -> None:
    lines = bad.splitlines()
    for number, line in enumerate(lines):
        if re.search(r"  (warning|broken) ", line):
            below = "\n".join(lines[number + 1 : number + 5])
            assert "-> " in below, bad


def test_it_fits_on_80_columns_and_ends_with_the_counts(bad: str) -> None:
    lines = bad.splitlines()
    assert all(len(line) <= 80 for line in lines if " /" not in line), bad
    assert re.fullmatch(r"\d+ fine, (\d+ skipped, )?\d+ warnings?, \d+ broken", lines[-1])


def test_a_mistake_in_the_configuration_is_one_and_nothing_is_examined(tmp_path: Path) -> None:
    done = doctor(tmp_path, "launch.workers=2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "workers_per_node" in done.stderr


def test_one_warning_is_not_called_warnings() -> None:
    assert summary([Finding("a", "warning")]).plain == "0 fine, 1 warning, 0 broken"
