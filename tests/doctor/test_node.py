"""Two nodes of a job from end to end, both played by this machine: tests/cluster/test_doctor.py asks a real SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCONTROL = """\
if [ "$2" = config ]; then echo "SLURM_VERSION = 24.11.5"
else echo "PartitionName=gpu Default=YES State=UP TotalNodes=2 MaxNodes=UNLIMITED MaxTime=UNLIMITED"; fi
"""
SRUN = """\
case "$*" in *--help*|*--version*) exit 1;; esac
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_JOB_ID=77 SLURM_STEP_ID=0 SLURM_JOB_NUM_NODES=2
for rank in 0 1; do
  SLURMD_NODENAME=n$rank SLURM_NODEID=$rank "$@" &
  echo $! >> $0.pids
done
wait
"""
SCANCEL = """\
echo "$*" >> $0.asked
if [ "$(wc -l < $0.asked)" = 1 ]; then exit; fi
pids=$(cat ${0%/*}/srun.pids)
case "$*" in *--signal=USR2*) kill -USR2 $pids; sleep 0.2; kill -USR2 $pids;; esac
"""


@pytest.mark.timeout(180)
def test_nodes_are_signalled_until_they_say_so_and_say_what_they_found(tmp_path: Path) -> None:
    commands, runs = tmp_path / "commands", tmp_path / "runs"
    commands.mkdir()
    runs.mkdir()
    for name, body in {"scontrol": SCONTROL, "srun": SRUN, "scancel": SCANCEL, "squeue": ""}.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}")
        (commands / name).chmod(0o755)
    command = [sys.executable, "-m", "dist_trainer.cli", "doctor", "--slurm", "--json", "--runs", str(runs)]
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "slurm.nodes=2", "launch.device=cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    states = {(each["name"], *each["nodes"]): each["state"] for each in found}
    for name in ("torch", "signals", "run folder", "nodes over lo"):
        assert states[name, "n0"] == states[name, "n1"] == "fine", found
    for name in ("shared files", "shared locks", "shared creates", "nodes", "nodes' versions"):
        assert states[name,] == "fine", found
    asked = (commands / "scancel.asked").read_text().splitlines()
    assert asked == ["--signal=USR2 77.0"] * 2  # the first one was lost
    assert list(runs.iterdir()) == []
