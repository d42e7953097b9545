"""Ranks that die, and nodes that have nothing in common: told, in one process that has torch."""

import json
import subprocess
import sys

import pytest

_SCRIPT = """
import os, signal, sys
from dist_trainer.adapters.listening import listen_on
from dist_trainer.doctor import ranks
from dist_trainer.doctor.ranks import Meeting, Plan

def dies(meeting, interfaces):
    os.kill(os.getpid(), signal.SIGKILL)

def fails():
    raise RuntimeError("CUDA is not well")

port, descriptor = listen_on("127.0.0.1")
ranks.main(Plan((), uses_gpus=False, across=Meeting("127.0.0.1", port, 0, 1, descriptor)))
os.write(1, b"\\n")
ranks._between_nodes, ranks._visible_gpus = dies, fails
ranks.main(Plan((), across=Meeting("127.0.0.1", 1, 1, 2), common=("lo",)))
"""
Found = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def found() -> tuple[Found, Found]:
    """Of a node that shares no interface; then where a rank dies, and CUDA cannot be asked."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CUDA is not well" in done.stderr
    first, second = (
        {each["name"]: each for each in map(json.loads, part.splitlines())}
        for part in done.stdout.split("\n\n")
    )
    return first, second


@pytest.mark.timeout(120)
def test_nodes_without_an_interface_in_common_are_a_warning(found: tuple[Found, Found]) -> None:
    alone = found[0]["between nodes"]
    assert alone["state"] == "warning"
    assert "no interface has the same name on all nodes" in alone["found"]


@pytest.mark.timeout(120)
def test_a_rank_that_is_killed_is_broken(found: tuple[Found, Found]) -> None:
    killed = found[1]["between nodes"]
    assert (killed["state"], killed["found"]) == ("broken", "the rank was ended by signal 9")


@pytest.mark.timeout(120)
def test_a_failure_to_ask_cuda_is_no_gpu_of_its_own(found: tuple[Found, Found]) -> None:
    assert found[1]["CUDA"]["state"] == "broken"
    assert found[1]["NCCL"]["state"] == "skipped"
