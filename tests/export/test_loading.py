"""The process without the package: what it says of a file, and that it does not outlive who asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.export import loading
from tests.launchers.processes import wait_for

pytestmark = pytest.mark.timeout(60)
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-P", *sys.argv[1:]])
print(child.pid, flush=True)
child.wait()
"""


def test_it_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.json")  # it waits there for a job
    command = [sys.executable, "-c", PARENT, loading.__file__, str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with (tmp_path / "job.json").open("w"):  # opens once the child reads
            parent.kill()
            parent.wait()
            wait_for(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
