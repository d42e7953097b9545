"""What is started by hand: the plain batch script, and the commands of launch/ that give a run to SLURM."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.fake_slurm import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]
REPOSITORY = Path(__file__).parents[2]


def put_command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o700)


def test_each_nodes_agent_of_the_plain_batch_script_prints_where_logs_looks(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    run = tmp_path / "a folder" / "plain"
    put_command(fake_slurm.folder, "dist-trainer", f'mkdir -p "{run}"; echo "{run}"; echo "$@" > asked')
    put_command(fake_slurm.folder, "python", 'printf "%s\\n" "$@" > after')
    fake_slurm.say("srun-code", "3")
    command = ["bash", str(REPOSITORY / "slurm" / "train.sbatch"), "train.yaml", "name=plain"]
    environment = {**os.environ, "PATH": fake_slurm.path}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=30)
    assert (tmp_path / "asked").read_text() == "prepare train.yaml name=plain\n"
    assert fake_slurm.srun_arguments() == [
        *("--kill-on-bad-exit=1", "--open-mode=append", f"--output={run}/slurm/%j_%t_log.out"),
        *("python", "-m", "dist_trainer.slurm.task", str(run)),
    ]
    assert (run / "slurm").is_dir()
    after = (tmp_path / "after").read_text().splitlines()
    assert after == ["-m", "dist_trainer.slurm.task", "--after", "3", str(run)]


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_sweep.sh"])
def test_a_command_without_a_profile_says_what_to_set(script: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PROFILE"}
    command = ["bash", str(REPOSITORY / "launch" / script), "train.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode and "PROFILE: set PROFILE=slurm/gpu.yaml" in done.stderr
