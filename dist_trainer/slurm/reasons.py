"""SLURM's reasons and states in plain words: why a job waits, what can be done, how it ended. Asks nobody."""

import re

_WAITS = {
    "": "SLURM has not looked at it yet",
    "AccountNotAllowed": "its account may not use this partition or QOS",
    "BadConstraints": "no node is like what it asks for: it will not start as it is",
    "BeginTime": "may not start yet",
    "Cleaning": "its last start is still being cleaned up",
    "Dependency": "waits for another job to end",
    "DependencyNeverSatisfied": "waits for a job that ended otherwise: it will never start, cancel it",
    "InvalidAccount": "its account is not valid (any more)",
    "InvalidQOS": "its QOS is not valid (any more)",
    "JobArrayTaskLimit": "as many jobs of its array run as may at a time",
    "JobHeldAdmin": "held by an administrator, who alone can release it",
    "JobHeldUser": "held by a user; scontrol release {job}",
    "JobHoldMaxRequeue": "requeued too often, so SLURM holds it; scontrol release {job}",
    "Licenses": "waits for a licence",
    "NodeDown": "a node that it needs is down",
    "PartitionConfig": "its partition does not give what it asks for",
    "PartitionDown": "its partition is closed for now",
    "PartitionInactive": "its partition is closed for now",
    "PartitionNodeLimit": "asks for more nodes than its partition gives a job",
    "PartitionTimeLimit": "asks for more time than its partition gives a job",
    "Priority": "other jobs go first",
    "QOSJobLimit": "its QOS runs as many jobs as it may",
    "QOSNotAllowed": "its QOS may not be used in this partition",
    "QOSResourceLimit": "its QOS uses as much as it may",
    "QOSTimeLimit": "asks for more time than its QOS gives",
    "QOSUsageThreshold": "its QOS was used more than it may be",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation is gone: it will not start as it is",
    "Resources": "next in line, as soon as enough nodes are free",
    "SchedDefer": "SLURM is busy and looks at it later",
}
_LONG_WAITS = (  # SLURM writes some reasons as sentences
    (r"^nodes required for job are down", "the nodes that it needs are down, drained or reserved"),
    (r"launch.failed.requeued.held", "a node could not start it, so SLURM holds it; scontrol release {job}"),
    (r"requeued.in.held.state", "requeued and held; scontrol release {job}"),
    (r"requeued.held", "SLURM requeued and holds it; scontrol release {job}"),
)
_LIMIT = re.compile(
    r"(?P<whose>Assoc|QOS|User)?(?P<kind>Grp|Max|Min)"
    r"(?P<what>CPU|Cpu|GRES|Gres|Node|Mem|BB|Billing|Energy|License|Job|Submit|Wall|Time)"
    r"(?P<rest>\w*)"
)
_WHAT = {
    "CPU": "CPUs",
    "GRES": "GPUs (or other devices)",
    "NODE": "nodes",
    "MEM": "memory",
    "BB": "burst buffer",
    "BILLING": "billing units",
    "ENERGY": "energy",
    "LICENSE": "licences",
    "JOB": "jobs",
    "SUBMIT": "jobs in the queue",
    "WALL": "time",
    "TIME": "time",
}
_ENDS = {
    "BOOT_FAIL": "a node did not start",
    "CANCELLED": "cancelled",
    "COMPLETED": "ended",
    "DEADLINE": "its deadline passed",
    "FAILED": "failed",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted, not requeued",
    "REVOKED": "taken back by the cluster",
    "TIMEOUT": "reached its time limit",
}
_HELD = re.compile(r"^JobHe?ld|^JobHold|held", re.IGNORECASE)


def why_it_waits(reason: str, job: str = "JOB") -> str:
    """SLURM's reason for not starting a job, in plain words, with SLURM's own beside them."""
    words = _in_words(reason).replace("{job}", job)
    return f"{words} ({reason})" if reason else words


def is_held(reason: str) -> bool:
    """Whether the job waits for somebody to release it."""
    return bool(_HELD.search(reason))


def how_it_ended(state: str) -> str:
    """A state of a job that lives no more, in plain words."""
    return _ENDS.get(state, state.lower().replace("_", " "))


def _in_words(reason: str) -> str:
    word = reason.split(",")[0].strip()  # "ReqNodeNotAvail, UnavailableNodes:n1"
    if word in _WAITS:
        return _WAITS[word]
    for pattern, words in _LONG_WAITS:
        if re.search(pattern, reason, re.IGNORECASE):
            return words
    limit = _LIMIT.match(word)
    return _limit_in_words(limit) if limit else "waits"


def _limit_in_words(limit: re.Match[str]) -> str:
    whose = "its QOS" if limit["whose"] == "QOS" else "your account"
    what, rest = _WHAT[limit["what"].upper()], limit["rest"]
    if "Minutes" in rest and limit["what"] not in ("Wall", "Time"):
        what = f"minutes of {what}"
    if limit["kind"] == "Min":
        return f"asks for less {what} than {whose} wants a job to use"
    if limit["kind"] == "Grp":
        return f"{whose} uses all the {what} that it may"
    if "PerUser" in rest or limit["what"] in ("Job", "Submit"):
        return f"you use all the {what} that {whose} gives one user"
    if "PerAccount" in rest:
        return f"your account uses all the {what} that {whose} gives one account"
    return f"asks for more {what} than {whose} gives a job"
