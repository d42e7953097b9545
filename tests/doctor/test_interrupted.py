"""A doctor that is told to end takes srun, its job and its folder with it: an srun of ours, that waits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.launchers.processes import wait_for

pytestmark = pytest.mark.timeout(120)
SCONTROL = """\
if [ "$2" = config ]; then echo "SLURM_VERSION = 24.11.5"
else echo "PartitionName=gpu Default=YES State=UP TotalNodes=2 MaxNodes=UNLIMITED MaxTime=UNLIMITED"; fi
"""
SRUN = """\
case "$*" in *--help*|*--version*) exit 1;; esac
trap "touch $0.told; exit 1" TERM
echo "srun: job 77 queued and waiting for resources" >&2
echo $$ > $0.pid.new; mv $0.pid.new $0.pid
for each in $(seq 600); do sleep 0.1; done
"""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """scontrol, srun, squeue and scancel, in front of any others."""
    folder = tmp_path / "commands"
    folder.mkdir()
    bodies = {"scontrol": SCONTROL, "srun": SRUN, "squeue": "", "scancel": 'echo "$*" >> $0.asked\n'}
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}")
        (folder / name).chmod(0o755)
    return folder


@contextmanager
def doctor(runs: Path, path: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "dist_trainer.cli", "doctor", "--json", "--runs", str(runs), *words]
    environment = {**os.environ, "PATH": path}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def has_children(pid: int) -> bool:
    with suppress(OSError):  # a thread that is over
        return any(each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children"))
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_srun_its_job_and_the_folder_end_with_it(
    commands: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with doctor(runs, f"{commands}:{os.environ['PATH']}", "--slurm", "slurm.nodes=2") as process:
        wait_for((commands / "srun.pid").exists)
        assert [path.name[:8] for path in runs.iterdir()] == [".doctor-"]
        process.send_signal(sent)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["state"] == "stopped"
    assert said == "interrupted\n"
    assert (commands / "srun.told").exists()
    assert (commands / "scancel.asked").read_text() == "77\n"
    assert not Path("/proc", (commands / "srun.pid").read_text().strip()).exists()
    assert list(runs.iterdir()) == []


def test_on_one_machine_nothing_stays_either(tmp_path: Path) -> None:
    with doctor(tmp_path, os.environ["PATH"], "launch.device=cpu") as process:
        wait_for(lambda: has_children(process.pid))  # its ranks
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
