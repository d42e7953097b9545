"""Which of SLURM's options a configuration may give, and what none of their values may hold.

What can be said without a cluster; whether an option exists is asked of the cluster's own sbatch at submission.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dist_trainer.config.conflicts import Conflict

if TYPE_CHECKING:
    from dist_trainer.config.schema import SlurmConfig

UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f]"
)  # an #SBATCH line has no continuation: a line break begins another one
MAX_LENGTH = 4000  # sbatch reads a value into a buffer of 8192 bytes and does not look at its end
DEFAULT_SIGNAL_S = 120
_ANY_TIME = re.compile(r"(?:([0-9]+)-)?([0-9]+(?::[0-9]+){0,2})")
_MINUTES_AND_SECONDS = re.compile(r"([0-9]+):([0-9]+)")  # to SLURM; who writes it means hours
_SIGNAL = re.compile(r"(?:SIG)?USR2@([0-9]+)")
_NAME = re.compile(r"[a-z][a-z0-9-]*")

_SHORT = """
    a=array A=account b=begin B=extra-node-info c=cpus-per-task C=constraint d=dependency D=chdir e=error
    E=preserve-env F=nodefile G=gpus h=help H=hold i=input I=immediate J=job-name k=no-kill K=kill-on-bad-exit
    l=label L=licenses m=distribution M=clusters n=ntasks N=nodes o=output O=overcommit p=partition q=qos Q=quiet
    r=relative s=oversubscribe S=core-spec t=time T=threads u=unbuffered v=verbose V=version w=nodelist W=wait
    x=exclude X=disable-status Z=no-allocate
"""
SHORT = dict(entry.split("=") for entry in _SHORT.split())  # the options of one letter, of sbatch and srun
_OUTPUT = "what a job prints is in the run folder: dist-trainer logs"
_TASKS = "each node has one task, the agent of its workers: launch.workers_per_node"
_IS_SENT = "dist-trainer submit sends the job"
NOT_TAKEN = {
    "nodes": "give slurm.nodes",
    "partition": "give slurm.partition",
    "time": "give slurm.time",
    "job-name": "it is the run's name: name",
    "chdir": "a job runs in the folder that the command was given in",
    "array": "dist-trainer sweep makes an array",
    "clusters": "submit on that cluster's own login node",
    "no-requeue": "a preempted run goes on by being requeued",
    "requeue": "every job is requeued where that helps",
    "open-mode": "logs are appended to",
    "wait": "dist-trainer submit --wait waits",
    "test-only": "dist-trainer submit --dry-run sends nothing",
    **dict.fromkeys(("output", "error", "input"), _OUTPUT),
    **dict.fromkeys(("parsable", "wrap", "help", "usage", "version", "quiet"), _IS_SENT),
    **dict.fromkeys(
        ("ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket"), _TASKS
    ),
}
_NOT_TAKEN_BY_SRUN = {
    **NOT_TAKEN,
    "export": "launch.env sets variables of the workers",
    "kill-on-bad-exit": "it is always on: the other agents end with the one that failed",
    "unbuffered": "it is always on",
    "signal": "give slurm.options.signal",
    **dict.fromkeys(("multi-prog", "pty", "preserve-env"), _TASKS),
}


def slurm_conflicts(slurm: "SlurmConfig") -> Iterator[Conflict]:
    """What is wrong with the section wherever it is used."""
    if problem := _time_problem(slurm.time):
        yield Conflict("slurm.time", problem)
    if slurm.partition is not None and (problem := value_problem(slurm.partition)):
        yield Conflict("slurm.partition", problem)
    yield from _option_conflicts("slurm.options", slurm.options, NOT_TAKEN)
    yield from _option_conflicts("slurm.srun_options", slurm.srun_options, _NOT_TAKEN_BY_SRUN)
    yield from _signal_conflicts(slurm)
    for number, line in enumerate(slurm.setup):
        if "\0" in line or "\r" in line:
            yield Conflict(f"slurm.setup.{number}", f"must be lines of shell, got {line!r}")


def value_problem(value: object) -> str | None:
    """What continues the sentence begun with a key whose value can be none of an option, a name or a path."""
    text = str(value)
    if UNPRINTABLE.search(text):
        return f"must be one line of text without control characters, got {text!r}"
    if not text.strip():
        return "must not be empty; null leaves it out"
    return f"must be at most {MAX_LENGTH} characters, got {len(text)}" if len(text) > MAX_LENGTH else None


def given(options: Mapping[str, Any]) -> dict[str, str | bool]:
    """The options as SLURM takes them: a flag is True; null and false are not there."""
    return {
        name: True if value is True else str(value)
        for name, value in options.items()
        if value is not None and value is not False
    }


def signal_before_s(slurm: "SlurmConfig") -> int:
    """How long before its time limit SLURM sends USR2 to a job."""
    if chosen := _SIGNAL.fullmatch(str(slurm.options.get("signal", ""))):
        return int(chosen[1])
    limit_s = time_limit_s(slurm)
    return DEFAULT_SIGNAL_S if limit_s is None else max(1, min(DEFAULT_SIGNAL_S, limit_s // 4))


def time_limit_s(slurm: "SlurmConfig") -> int | None:
    """`slurm.time` in seconds; None where the cluster's default holds."""
    return None if slurm.time is None else seconds_of(str(slurm.time))


def seconds_of(time: str) -> int | None:
    """A time as SLURM reads and writes it: 30 and 30:00 are minutes, 1:00:00 and 1-12 begin with hours and days.

    None for what is none, as UNLIMITED and infinite.
    """
    found = _ANY_TIME.fullmatch(time)
    if found is None:
        return None
    parts = [int(part) for part in found[2].split(":")]
    if found[1] is None and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(found[1] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _time_problem(time: str | int | None) -> str | None:
    if time is None:
        return None
    wanted = f"must be minutes, 24:00:00 or 2-12:00:00, got {time!r}"
    if short := _MINUTES_AND_SECONDS.fullmatch(str(time)):
        hours, minutes = int(short[1]), int(short[2])
        meant = f"{hours}:{minutes:02d}:00 or {hours * 60 + minutes}"
        return f"{wanted}, which SLURM reads as minutes and seconds: write {meant}"
    seconds = seconds_of(str(time))
    if seconds is None:
        return wanted
    if seconds == 0:
        return f"must be more than 0, got {time!r}, which SLURM takes for no limit; null is the partition's limit"
    return None


def _option_conflicts(
    section: str, options: Mapping[str, Any], not_taken: Mapping[str, str]
) -> Iterator[Conflict]:
    for name, value in options.items():
        key = f"{section}.{name}"
        plain = name.strip("-").replace("_", "-").lower()
        if long := SHORT.get(name.lstrip("-")):
            where = f": {not_taken[long]}" if long in not_taken else ""
            yield Conflict(key, f"must be written by its long name, {long}{where}")
        elif not _NAME.fullmatch(name):
            if _NAME.fullmatch(plain):
                yield Conflict(
                    key, f"must be written {plain}, as in sbatch --help without the dashes in front"
                )
            else:
                yield Conflict(section, f"must have names as in sbatch --help, got {name!r}")
        elif name in not_taken:
            yield Conflict(key, f"belongs to the launcher: {not_taken[name]}")
        elif not isinstance(value, bool | None) and (problem := value_problem(value)):
            yield Conflict(key, problem)


def _signal_conflicts(slurm: "SlurmConfig") -> Iterator[Conflict]:
    wanted = slurm.options.get("signal")
    if wanted is None or wanted is False:
        return
    if not _SIGNAL.fullmatch(str(wanted)):
        message = (
            f"must be USR2@ and seconds before the time limit, as in USR2@{DEFAULT_SIGNAL_S}, got {wanted!r}"
        )
        yield Conflict(
            "slurm.options.signal", f"{message}: it goes to every agent, and stops and saves the run"
        )
        return
    if _time_problem(slurm.time):
        return
    limit_s = time_limit_s(slurm)
    if limit_s and signal_before_s(slurm) >= limit_s:
        message = f"must come after the start: slurm.time is {limit_s} s, got {wanted!r}"
        yield Conflict("slurm.options.signal", message, ("slurm.time",))
