"""What a cluster is set to, as far as a job has to know it."""

import re
from contextlib import suppress

from dist_trainer.slurm.scheduler import SchedulerUnavailable, ask, hostnames

_KILL_WAIT_S = 30.0  # SLURM's default


def kill_wait_s() -> float:
    """How long SLURM waits between TERM and KILL; its default where the controller does not say."""
    with suppress(SchedulerUnavailable):
        if found := re.search(r"^KillWait\s*=\s*(\d+)", ask(["scontrol", "show", "config"]), re.MULTILINE):
            return float(found[1])
    return _KILL_WAIT_S


def settings() -> dict[str, str]:
    """slurm.conf as the controller has it: JobRequeue to "1". SchedulerUnavailable where it does not answer."""
    lines = ask(["scontrol", "show", "config"]).splitlines()
    found = (re.match(r"(\w+)\s*= ?(.*)", line) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def partition(name: str | None) -> dict[str, str] | None:
    """What scontrol says of a partition, or of the default one; None where there is no such."""
    shown = ask(["scontrol", "show", "partition", "--oneliner"])
    for line in shown.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        if facts.get("PartitionName") == name or (name is None and facts.get("Default") == "YES"):
            return facts
    return None


def partition_names() -> list[str]:
    """All that there are."""
    return re.findall(r"PartitionName=(\S+)", ask(["scontrol", "show", "partition", "--oneliner"]))


def nodes_to_choose_from(job: str) -> list[str]:
    """The nodes of a job's partition that it is not kept off; SchedulerUnavailable where nobody says."""
    shown = ask(["scontrol", "show", "job", job])
    partition, excluded = (re.search(rf"\b{key}=(\S+)", shown) for key in ("Partition", "ExcNodeList"))
    if partition is None:
        return []
    listed = re.search(r"^\s*Nodes=(\S+)", ask(["scontrol", "show", "partition", partition[1]]), re.MULTILINE)
    without = hostnames(excluded[1]) if excluded and excluded[1] != "(null)" else []
    return [node for node in hostnames(listed[1]) if node not in without] if listed else []
