"""What sinfo and sacctmgr say of a cluster to somebody who has not used it yet: its partitions, and one's account."""

import os
import pwd
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dist_trainer.config.sbatch_options import seconds_of
from dist_trainer.slurm.scheduler import SchedulerUnavailable, ask

_SINFO = "%P|%a|%l|%D|%c|%m|%G"
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_ACCOUNT_S = 5.0  # accounting may be elsewhere, and slow: a profile does without


@dataclass(frozen=True)
class Partition:
    """A partition, and the nodes of it that are alike and the most."""

    name: str
    is_default: bool
    nodes: int
    cpus: int  # of a node
    memory_mb: int
    gpus: int
    limit_minutes: int | None  # None: no limit


def partitions() -> list[Partition]:
    """Those that take jobs, the cluster's default first. SchedulerUnavailable where no SLURM answers."""
    shown = ask(["sinfo", "--noheader", "--exact", f"--format={_SINFO}"])
    found: dict[str, Partition] = {}
    for line in shown.splitlines():
        each = _partition(line)
        if each is not None and (each.name not in found or _rank(each) > _rank(found[each.name])):
            found[each.name] = each
    return sorted(found.values(), key=lambda each: not each.is_default)


def best_for_training(found: Sequence[Partition]) -> Partition | None:
    """The default one, or the first with GPUs where the default has none."""
    return max(found, key=lambda each: (each.gpus > 0, each.is_default), default=None)


def default_account() -> str | None:
    """The account that one's jobs are charged to; None where the cluster keeps none, or does not say."""
    with suppress(SchedulerUnavailable, KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
        command = ["sacctmgr", "--noheader", "--parsable2", "show", "user", user, "format=DefaultAccount"]
        return ask(command, within_s=_ACCOUNT_S).strip() or None
    return None


def _rank(each: Partition) -> tuple[int, int]:
    return each.gpus, each.nodes


def _partition(line: str) -> Partition | None:
    """None for what is down, has no nodes, or is no line of ours."""
    words = [word.strip() for word in line.split("|")]
    if len(words) != 7:
        return None
    name, state, limit, nodes, cpus, memory, gres = words
    if state != "up" or not nodes.isdigit() or int(nodes) == 0:
        return None
    gpus = sum(int(number) for number in _GPUS.findall(gres))
    return Partition(
        name.rstrip("*"),
        name.endswith("*"),
        int(nodes),
        _number(cpus),
        _number(memory),
        gpus,
        _minutes(limit),
    )


def _number(text: str) -> int:
    found = re.match(r"\d+", text)  # "8+" where nodes differ
    return int(found[0]) if found else 0


def _minutes(text: str) -> int | None:
    seconds = seconds_of(text)
    return None if seconds is None else max(1, seconds // 60)
