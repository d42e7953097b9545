"""Whether a cluster's own sbatch and srun know the options of a configuration: their words are the truth.

Their --help lists the names; what it leaves out (--hint, --acctg-freq, ...) they are asked themselves.
"""

import re
import subprocess
from functools import cache
from pathlib import Path

from dist_trainer.config.layers import COMMAND_LINE
from dist_trainer.config.load import Loaded
from dist_trainer.config.near import did_you_mean
from dist_trainer.config.sbatch_options import NOT_TAKEN, given
from dist_trainer.config.yaml_rules import read_yaml

_OPTION = re.compile(r"^ {1,8}(?:-\w,? +)?--([a-z][a-z0-9-]*)", re.MULTILINE)
_PROFILE = {"slurm", "launch"}
_HELP_S = 10.0


@cache
def known_options(command: str) -> frozenset[str]:
    """The long options of `sbatch` or `srun`; none where the command is not there or has no cluster."""
    try:
        shown = subprocess.run(
            [command, "--help"], capture_output=True, text=True, check=True, timeout=_HELP_S
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(_OPTION.findall(shown.stdout))


def option_problems(loaded: Loaded) -> list[tuple[str, str]]:
    """The options that the cluster does not know: (dotted key, message to follow it)."""
    slurm, problems = loaded.config.slurm, []
    for section, options, command in (
        ("options", slurm.options, "sbatch"),
        ("srun_options", slurm.srun_options, "srun"),
    ):
        known = known_options(command)
        for name, value in given(options).items() if known else ():
            if not _knows(command, name, value):
                message = (
                    f"is no option of this cluster's {command}{did_you_mean(name, known - NOT_TAKEN.keys())}"
                )
                problems.append((f"slurm.{section}.{name}", message))
    return problems


def _knows(command: str, name: str, value: str | bool) -> bool:
    known = known_options(command)
    if name in known:
        return True
    if any(other.startswith(name) for other in (*known, *NOT_TAKEN)):  # they would take it for the longer one
        return False
    option = f"--{name}" if value is True else f"--{name}={value}"
    try:
        asked = subprocess.run(
            [command, option, "--version"], capture_output=True, text=True, check=False, timeout=_HELP_S
        )
    except (OSError, subprocess.SubprocessError):
        return True  # nobody says that it is wrong; sbatch --test-only is asked yet
    return "unrecognized option" not in asked.stderr


def setup_problems(loaded: Loaded) -> list[tuple[str, str]]:
    """Shell lines from anywhere but a profile: a file with no other sections than slurm and launch."""
    problems = []
    for number in range(len(loaded.config.slurm.setup)):
        key = f"slurm.setup.{number}"
        where = loaded.locate(key)
        if where == COMMAND_LINE:
            problems.append((key, "is shell from the command line; shell comes from a profile alone"))
        elif others := _sections(where.rpartition(":")[0]) - _PROFILE:
            problems.append(
                (
                    key,
                    f"is shell in a file with the section {min(others)}; shell comes from a profile alone, "
                    "a file with the sections slurm and launch",
                )
            )
    return problems[:1]


def _sections(path: str) -> set[str]:
    tree, _ = read_yaml(Path(path).read_text(encoding="utf-8-sig"), path)
    return set(tree.value) if tree is not None and isinstance(tree.value, dict) else set()
