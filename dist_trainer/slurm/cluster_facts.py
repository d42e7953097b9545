"""What a cluster is set to, as far as a job has to know it."""

import re
from contextlib import suppress

from dist_trainer.slurm.scheduler import SchedulerUnavailable, ask, hostnames

_KILL_WAIT_S = 30.0  # SLURM's default


def kill_wait_s() -> float:
    """How long SLURM waits between TERM and KILL; its default where the controller does not say."""
    with suppress(SchedulerUnavailable):
        if found := re.match(r"\d+", settings().get("KillWait", "")):
            return float(found[0])
    return _KILL_WAIT_S


def settings() -> dict[str, str]:
    """slurm.conf as the controller has it: JobRequeue to "1". SchedulerUnavailable where it does not answer."""
    lines = ask(["scontrol", "show", "config"]).splitlines()
    found = (re.match(r"(\w+)\s*= ?(.*)", line) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def partitions_by_name() -> dict[str, dict[str, str]]:
    """What scontrol says of each, of hidden ones too. SchedulerUnavailable where it does not answer."""
    lines = ask(["scontrol", "show", "partition", "--all", "--oneliner"]).splitlines()
    found = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
    return {facts["PartitionName"]: facts for facts in found if "PartitionName" in facts}


def nodes_to_choose_from(job: str) -> list[str]:
    """The nodes of a job's partition that it is not kept off; SchedulerUnavailable where nobody says."""
    shown = ask(["scontrol", "show", "job", job])
    partition, excluded = (re.search(rf"\b{key}=(\S+)", shown) for key in ("Partition", "ExcNodeList"))
    if partition is None:
        return []
    listed = re.search(r"^\s*Nodes=(\S+)", ask(["scontrol", "show", "partition", partition[1]]), re.MULTILINE)
    without = hostnames(excluded[1]) if excluded and excluded[1] != "(null)" else []
    return [node for node in hostnames(listed[1]) if node not in without] if listed else []
