"""What this cluster is set to, as far as a run depends on it: its partition, preemption, and the end of a job."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dist_trainer.config.sbatch_options import seconds_of, signal_before_s, time_limit_s
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.subject import Subject
from dist_trainer.slurm.cluster_facts import partitions_by_name, settings
from dist_trainer.slurm.scheduler import SchedulerUnavailable

_SHORT_KILL_WAIT_S = 10
# what SLURM itself looks for; the second one was there first
_USER_SIGNAL = {"PreemptParameters": "send_user_signal", "SlurmctldParameters": "preempt_send_user_signal"}
_SAVE_OFTEN = "checkpoint.every_minutes says how much a preemption can cost"


def check_cluster(subject: Subject) -> Iterator[Finding]:
    """Each of them, where a SLURM answers."""
    try:
        facts = settings()
        there = partitions_by_name()
    except SchedulerUnavailable as error:
        yield _no_cluster(subject, str(error))
        return
    version = facts.get("SLURM_VERSION", "unknown version")
    yield Finding("SLURM", "fine", f"{version}, cluster {facts.get('ClusterName', '?')}")
    wanted = _wanted(subject, there)
    if lost := [name for name in wanted if name not in there]:
        words = f"there is no {', '.join(lost)}"
        yield Finding("partition", "broken", words, f"slurm.partition: one of {', '.join(there)}")
        return
    if not wanted:
        advice = (
            f"slurm.partition: one of {', '.join(there)}; the cluster may also choose one by rules of its own"
        )
        yield Finding("partition", "warning", "none is the default", advice)
    yield from _partitions(subject, [there[name] for name in wanted])
    for name in wanted:
        found = _preemption(facts, there[name])
        yield replace(found, found=f"{name}: {found.found}") if len(wanted) > 1 else found
    yield _end(subject, facts)


def _wanted(subject: Subject, there: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Those of which SLURM takes the first that can begin: a list with commas, or the default."""
    if subject.config.slurm.partition is None:
        return [name for name, facts in there.items() if facts.get("Default") == "YES"]
    return [name.strip() for name in str(subject.config.slurm.partition).split(",") if name.strip()]


def _partitions(subject: Subject, wanted: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """What one does not give, another of the list may."""
    found = [_partition(subject, ours) for ours in wanted]
    does_one = any(each.state == "fine" for each in found)
    for each in found:
        yield replace(each, state="warning") if each.state == "broken" and does_one else each


def _no_cluster(subject: Subject, words: str) -> Finding:
    slurm = subject.config.slurm
    if slurm.partition is None and not slurm.options:
        return Finding("SLURM", "skipped", "none answers here")
    first, _, _ = words.partition(";")
    return Finding(
        "SLURM", "warning", first, "submit from a login node of the cluster, where squeue and sbatch are"
    )


def _partition(subject: Subject, ours: Mapping[str, str]) -> Finding:
    slurm, name = subject.config.slurm, ours["PartitionName"]
    nodes, longest = ours.get("TotalNodes", ""), ours.get("MaxTime", "")
    found = f"{name}: {nodes} node{'' if nodes == '1' else 's'}, at most {longest}"
    if ours.get("State") != "UP":
        return Finding(
            "partition", "broken", f"{name} is {ours.get('State', '?')}", "choose another slurm.partition"
        )
    most = _limit(nodes, ours.get("MaxNodes", ""))
    if most is not None and slurm.nodes > most:
        advice = f"slurm.nodes: at most {most}, or another slurm.partition"
        return Finding("partition", "broken", f"{found}; slurm.nodes is {slurm.nodes}", advice)
    wanted_s, most_s = time_limit_s(slurm), seconds_of(longest)
    if wanted_s is not None and most_s is not None and wanted_s > most_s:
        advice = "a shorter slurm.time: the run is requeued, and goes on, as often as it takes"
        return Finding("partition", "broken", f"{found}; slurm.time is {slurm.time}", advice)
    return Finding("partition", "fine", found)


def _limit(*counts: str) -> int | None:
    numbers = [int(count) for count in counts if count.isdigit()]
    return min(numbers) if numbers else None


def _preemption(facts: Mapping[str, str], ours: Mapping[str, str]) -> Finding:
    """docs/slurm.md says what a run needs to be told of its preemption."""
    mode = ours.get("PreemptMode", facts.get("PreemptMode", "OFF"))
    if facts.get("PreemptType", "preempt/none") == "preempt/none" or mode == "OFF":
        return Finding("preemption", "fine", "none in this partition")
    grace_s = _number(ours.get("GraceTime", "0"))
    kill_wait_s = _number(facts.get("KillWait", "30"))
    told = any(word in facts.get(key, "").lower() for key, word in _USER_SIGNAL.items())
    found = f"{mode}, GraceTime {grace_s} s"
    if "REQUEUE" not in mode:
        what = "suspended, and its memory kept" if "SUSPEND" in mode else "ended, and not requeued"
        advice = f"submit again, or ask for PreemptMode=REQUEUE; {_SAVE_OFTEN}"
        return Finding("preemption", "warning", f"{found}: a preempted job is {what}", advice)
    if not grace_s or not told:
        lacks = "a GraceTime" if not grace_s else "PreemptParameters=send_user_signal"
        words = f"{found}, without {lacks}: TERM at once, and {kill_wait_s} s to save"
        return Finding("preemption", "warning", words, f"ask the administrator for {lacks}; {_SAVE_OFTEN}")
    return Finding("preemption", "fine", f"{found}, told by USR2")


def _end(subject: Subject, facts: Mapping[str, str]) -> Finding:
    kill_wait_s = _number(facts.get("KillWait", "30"))
    before_s, requeue = signal_before_s(subject.config.slurm), facts.get("JobRequeue", "1")
    found = f"USR2 {before_s} s before the limit, KillWait {kill_wait_s} s, JobRequeue {requeue}"
    if requeue == "0":
        found += " (our jobs ask for it)"
    if kill_wait_s < _SHORT_KILL_WAIT_S:
        advice = f"a requeue or scancel leaves no more than that to save; {_SAVE_OFTEN}"
        return Finding("job's end", "warning", found, advice)
    return Finding("job's end", "fine", found)


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0
