"""Commands named as SLURM's, for what a real cluster does not do on demand: refuse, stay silent, forget."""

import json
import os
from pathlib import Path

import pytest

_HELP = """Usage: sbatch [OPTIONS(0)...]

Parallel run options:
  -A, --account=name          charge job to specified account
      --comment=name          arbitrary comment
  -c, --cpus-per-task=ncpus   number of cpus required per task
      --cpu-bind=             bind
      --exclusive[=user]      allocate nodes in exclusive mode
      --gres=list             required generic resources
      --gpus-per-node=n       number of GPUs required per allocated node
      --mem=MB                minimum amount of real memory
  -n, --ntasks=ntasks         number of tasks to run
  -B  --extra-node-info=S[:C[:T]]  combine request of sockets per node,
      --signal=[R:]num[@time] send signal when time limit within time seconds
"""
_SBATCH = """#!/bin/bash
here={folder}
case "$*" in
  *--help*) cat "$here/help"; exit 0;;
  *--hint=*--version*) echo slurm-wlm; exit 0;;
  *--version*) echo "sbatch: unrecognized option '$1'" >&2; exit 255;;
  --test-only) cat > "$here/tried"; how=test;;
  *) cp "${{@: -1}}" "$here/sent"; env -0 > "$here/environment"; how=send;;
esac
if [ -e "$here/$how-refused" ]; then cat "$here/$how-refused" >&2; exit 1; fi
if [ $how = test ]; then
  echo "sbatch: Job 7 to start at 2031-01-02T03:04:05 using 2 processors on nodes n[1-2] in partition main" >&2
else
  if [ -e "$here/before" ]; then . "$here/before"; fi
  echo "$(cat "$here/answer")"
fi
"""
_SQUEUE = """#!/bin/bash
cat {folder}/queue
"""
_SRUN = """#!/bin/bash
case "$*" in
  *--help*) cat {folder}/help; exit 0;;
  *--version*) echo "srun: unrecognized option '$1'" >&2; exit 255;;
esac
printf '%s\\0' "$@" > {folder}/srun-arguments
env -0 > {folder}/srun-environment
exit "$(cat {folder}/srun-code)"
"""
_NOBODY = """#!/bin/bash
echo "slurm_load_jobs error: Invalid job id specified" >&2
exit 1
"""


class FakeSlurm:
    """The commands in a folder that comes first on the PATH, and what they were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        scripts = {"sbatch": _SBATCH, "squeue": _SQUEUE, "srun": _SRUN}
        for name, text in {**scripts, "scontrol": _NOBODY, "sacct": _NOBODY}.items():
            path = folder / name
            path.write_text(text.format(folder=folder) if text is not _NOBODY else text)
            path.chmod(0o700)
        self.say("help", _HELP)
        self.say("queue", "")
        self.say("answer", "4711")
        self.say("srun-code", "0")

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def say(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def refuse(self, words: str, *, when: str = "test") -> None:
        """Have sbatch refuse, when it is asked (test) or when it is given the job (send)."""
        self.say(f"{when}-refused", f"sbatch: error: {words}\n")

    def queue(self, job: str, state: str, name: str = "small") -> None:
        """Have squeue know one job."""
        self.say("queue", f"{job}|{state}|n1|N/A|N/A|2031-01-02T03:04:05|Resources|{name}\n")

    def show(self, job: str, script: Path) -> None:
        """Have scontrol know one job and the script that it was sent with."""
        text = f"JobId={job} JobName=small\n   JobState=PENDING Reason=None Dependency=(null)\n   Command={script}"
        (self.folder / "scontrol").write_text(f"#!/bin/bash\ncat <<'END'\n{text}\nEND\n")

    @property
    def sent(self) -> str | None:
        """The script that sbatch was given."""
        path = self.folder / "sent"
        return path.read_text() if path.exists() else None

    def environment(self, name: str = "environment") -> dict[str, str]:
        """The variables that came with it."""
        entries = (self.folder / name).read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)

    def srun_arguments(self) -> list[str]:
        return (self.folder / "srun-arguments").read_text().split("\0")[:-1]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands, in the place of real ones."""
    from dist_trainer.slurm.cluster_options import known_options

    known_options.cache_clear()
    fake = FakeSlurm(tmp_path / "fake-slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


def config_text(**sections: object) -> str:
    """A small configuration; what is given goes over it."""
    base: dict[str, object] = {
        "name": "small",
        "model": {"target": "torch.nn.Linear", "in_features": 2, "out_features": 1},
        "data": {"train": {"target": "torch.utils.data.TensorDataset"}, "global_batch_size": 4},
        "loss": {"target": "torch.nn.MSELoss"},
        "optimizer": {"target": "torch.optim.SGD", "lr": 0.1},
        "tracking": {"uri": None},
    }
    return json.dumps({**base, **sections}, indent=1)
