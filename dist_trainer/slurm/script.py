"""The batch script of a run, and how it is sent: the only importer of submitit, which writes the script's text.

Nothing is pickled, and none of submitit's own code runs in the job: on each node the script starts
`python -m dist_trainer.slurm.task`. Its last line runs it once more with srun's exit code, and that one's
exit code is the job's.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dist_trainer.config.imports import CODE_FOLDER_VARIABLE
from dist_trainer.config.sbatch_options import UNPRINTABLE, given, signal_before_s
from dist_trainer.config.schema import Config, SlurmConfig
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.slurm.scheduler import NO_SLURM, SchedulerUnavailable

TASK = "dist_trainer.slurm.task"

_SEND_S = 60.0
_ONE_TASK_A_NODE = ("--kill-on-bad-exit=1", "--open-mode=append", "--export=ALL")
_NO_ANSWER = re.compile(r"unable to contact|connection refused|controller not responding", re.IGNORECASE)
_LATE_ANSWER = re.compile(r"timed out", re.IGNORECASE)  # it may well have taken the job
_NO_CONFIGURATION = re.compile(r"configuration source|cannot find the configuration|slurm[.]conf")
_A_JOBS_OWN = ("SLURM_", "SLURMD_", "SRUN_", "PMI", "SUBMITIT_", "DIST_TRAINER_", "TORCHELASTIC_")
_TORCHRUNS = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}
# a variable of sbatch wins over the script, which would then say something else than what happens
_OVER_THE_SCRIPT = {
    *("SBATCH_ARRAY_INX", "SBATCH_JOB_NAME", "SBATCH_NO_REQUEUE", "SBATCH_OPEN_MODE", "SBATCH_REQUEUE"),
    *("SBATCH_SIGNAL", "SBATCH_WAIT", "SBATCH_TEST_ONLY", "SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_INPUT"),
}
_NAMES_OF_VARIABLES = {"time": "TIMELIMIT", "licenses": "LICENSES", "mem": "MEM_PER_NODE"}


class Refused(UsageError):
    """SLURM does not take the job; the message is its own words."""


class Unanswered(DistTrainerError):
    """Nobody knows whether SLURM has taken the job."""


@dataclass(frozen=True)
class Code:
    """Where a job's code is: `folder` stands for the working folder, `path` are further folders to import from."""

    folder: Path
    path: Sequence[Path] = ()


def make_script(
    config: Config,
    *,
    log_folder: Path,
    working_folder: Path,
    arguments: Sequence[str],
    code: Code | None = None,
    array: Sequence[int] | None = None,
    parallel: int | None = None,
) -> str:
    """The batch script of a run, or of an array of the elements with these numbers, `parallel` of them at a time.

    `arguments` are those of slurm/task.py. Raises UsageError for a folder that no script can name.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    task, nothing = [sys.executable, "-m", TASK], cast(Any, None)  # instead of submitit's own defaults
    _check_folders([log_folder, working_folder, Path(sys.executable), *map(Path, arguments)], log_folder)
    text: str = _make_sbatch_string(
        command=shlex.join([*task, *arguments]),
        folder=log_folder,
        job_name=config.name,
        nodes=config.slurm.nodes,
        ntasks_per_node=1,
        time=nothing,
        wckey=nothing,
        setup=_setup(config.slurm, code),
        teardown=[f'{shlex.join(task)} --after "$?" {shlex.join(arguments)}'],
        stderr_to_stdout=True,
        map_count=None if array is None else len(array),
        additional_parameters={**_sbatch_options(config.slurm, working_folder), **_array(array, parallel)},
        srun_args=[*_ONE_TASK_A_NODE, *_srun_options(config.slurm)],
    )
    return f"{text}\n"


def test_only(text: str, slurm: SlurmConfig) -> str:
    """When SLURM thinks that a job would start, in its words: 2026-11-23T18:00:00. Refused says why it would not."""
    said = _sbatch(["--test-only"], slurm, text=text).stderr
    found = re.search(r"to start at (\S+)", said)
    return found[1] if found else ""


def send(text: str, path: Path, slurm: SlurmConfig) -> str:
    """Keep the script at `path` and give it to SLURM; the job's id. Refused where SLURM does not take it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    try:
        answer = _sbatch(["--parsable", str(path)], slurm).stdout.strip()
    except (Refused, SchedulerUnavailable):
        path.unlink()
        raise
    job = answer.partition(";")[0]
    if not job.isdigit():
        raise Unanswered(
            f"sbatch took the script and gave no job's id, but {answer!r}; squeue shows your jobs"
        )
    return job


def _check_folders(paths: Sequence[Path], log_folder: Path) -> None:
    for path in paths:
        if UNPRINTABLE.search(str(path)):
            raise UsageError(f"{str(path)!r} holds a control character, and no line of a batch script can")
    if found := set("%\\") & set(str(log_folder)):
        raise UsageError(
            f"{log_folder}: sbatch takes {' and '.join(sorted(found))} in its --output for a pattern; "
            "choose a folder without, with --runs"
        )


def _sbatch_options(slurm: SlurmConfig, working_folder: Path) -> dict[str, str | bool]:
    options: dict[str, str | bool] = {
        **given({"partition": slurm.partition, "time": slurm.time}),
        **given(slurm.options),
        "signal": f"USR2@{signal_before_s(slurm)}",
        "requeue": True,
        "chdir": str(working_folder),
    }
    # submitit quotes as a shell does; to sbatch a backslash means something between single quotes too
    return {
        name: value if value is True else str(value).replace("\\", "\\\\") for name, value in options.items()
    }


def _array(numbers: Sequence[int] | None, parallel: int | None) -> dict[str, str]:
    """0-3,7%2: as short as it can be, since sbatch reads no long lines."""
    if numbers is None:
        return {}
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return {"array": ",".join(parts) + (f"%{parallel}" if parallel else "")}


def _srun_options(slurm: SlurmConfig) -> list[str]:
    options = given(slurm.srun_options).items()
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in sorted(options)]


def _setup(slurm: SlurmConfig, code: Code | None) -> list[str]:
    """What the script does before srun; its first command also ends the part that sbatch reads options from."""
    lines = [
        "trap : TERM USR2  # sent to the whole job: srun ends by it, and the last line is to be reached",
        *slurm.setup,
        "set +eu",
        "export PYTHONSAFEPATH=1  # no module of the folder we are in may stand in for one of Python's",
    ]
    if code is not None:
        folders = [code.folder, *code.path]
        _check_python_path(folders)
        lines += [
            f"export {CODE_FOLDER_VARIABLE}={shlex.quote(str(code.folder))}",
            f"export PYTHONPATH={shlex.quote(':'.join(map(str, folders)))}${{PYTHONPATH:+:$PYTHONPATH}}",
        ]
    # srun does not take over what sbatch was told, and a task would have one core
    give = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
    return [*lines, f'if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then {give}; fi']


def _check_python_path(folders: Sequence[Path]) -> None:
    for folder in folders:
        if ":" in str(folder) or UNPRINTABLE.search(str(folder)):
            raise UsageError(
                f"{str(folder)!r}: Python splits its path at a colon; choose a folder of runs without, with --runs, "
                "or --no-snapshot"
            )


def _sbatch(
    arguments: list[str], slurm: SlurmConfig, *, text: str | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run(
            ["sbatch", *arguments],
            input=text or "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SEND_S,
            env=environment_of_job(os.environ, slurm),
        )
    except FileNotFoundError:
        raise SchedulerUnavailable(NO_SLURM) from None
    except subprocess.TimeoutExpired:
        raise _silence(f"sbatch did not answer within {_SEND_S:.0f} s", is_sent=text is None) from None
    if done.returncode == 0:
        return done
    words = _words(done.stderr) or f"sbatch ended with {done.returncode}"
    if _NO_CONFIGURATION.search(words):
        raise SchedulerUnavailable(NO_SLURM)
    if _LATE_ANSWER.search(words):
        raise _silence(f"SLURM did not answer in time: {words}", is_sent=text is None)
    if _NO_ANSWER.search(words):
        raise SchedulerUnavailable(f"SLURM does not answer: {words}")
    raise Refused(words)


def _silence(words: str, *, is_sent: bool) -> DistTrainerError:
    if is_sent:
        return Unanswered(f"{words}; whether it has taken the job, squeue shows")
    return SchedulerUnavailable(f"{words}; no job was sent, try again later")


def environment_of_job(ours: Mapping[str, str], slurm: SlurmConfig) -> dict[str, str]:
    """Ours, without what another job, a worker or the user's defaults for sbatch would bring into the new job."""
    options = {*given(slurm.options), *(name for name in ("partition", "time") if getattr(slurm, name))}
    names = (_NAMES_OF_VARIABLES.get(name, name.upper().replace("-", "_")) for name in options)
    dropped = {*_TORCHRUNS, *_OVER_THE_SCRIPT, *(f"SBATCH_{name}" for name in names)} - {"SLURM_CONF"}
    return {
        name: value
        for name, value in ours.items()
        if name == "SLURM_CONF" or not (name in dropped or name.startswith(_A_JOBS_OWN))
    }


def _words(said: str) -> str:
    """What sbatch said, without its own name in front of each line."""
    lines = (re.sub(r"^sbatch: (error: |fatal: )?", "", line).strip() for line in said.splitlines())
    return "; ".join(line for line in lines if line)
