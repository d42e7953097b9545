"""A process that leaves quickly has done all that it had to."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.adapters.interpreter import importing

LEAVES = """
import atexit, threading, time
from dist_trainer.adapters.interpreter import leave

def late():
    time.sleep(0.3)
    print("the thread is over")

atexit.register(print, "what was registered")
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("not flushed yet", end=" ")
leave(7)
"""


def test_threads_what_is_registered_and_output_come_first_and_daemons_are_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "not flushed yet the thread is over\nwhat was registered\n"


@pytest.mark.parametrize("leaves", ["leave(3)", "import sys; sys.exit(3)"])
def test_output_that_nobody_takes_is_told_as_python_does(leaves: str) -> None:
    script = f"from dist_trainer.adapters.interpreter import leave\nprint('x')\n{leaves}"
    with Path("/dev/full").open("w") as full:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, env=buffered, timeout=60, check=False)
    assert done.returncode == 120


def test_without_streams_a_process_leaves_too() -> None:
    script = "import sys\nfrom dist_trainer.adapters.interpreter import leave\nsys.stdout = None\nleave(0)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_again_as_it_was_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_next_to_nothing_becomes_garbage_while_torch_is_imported() -> None:
    script = (
        "import gc; gc.disable(); import torch, torch._dynamo; print(gc.collect(), len(gc.get_objects()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    garbage, objects = map(int, done.stdout.split())
    print(f"{garbage} of {objects}")
    assert garbage < objects / 10
