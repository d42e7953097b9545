"""Every node of a job at once: started by srun, heard by their reports in the folder of runs, and compared."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor.file_system import judge_clock, nearest, scratch, words_of
from dist_trainer.doctor.findings import Finding, State, with_measured
from dist_trainer.doctor.node import BLIND, SIGNAL_WITHIN_S, SIGNALLED, Report, Request
from dist_trainer.doctor.shared_folder import Here, arrived, poll_s, read_new
from dist_trainer.doctor.subject import Subject
from dist_trainer.doctor.together import ARRIVE_WITHIN_S, SHARED
from dist_trainer.errors import DistTrainerError
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.slurm.on_nodes import OnNodes, on_nodes, python, wait_until_over
from dist_trainer.slurm.reasons import why_it_waits
from dist_trainer.slurm.scheduler import SchedulerUnavailable

_NODES_WITHIN_S = 300.0
_SEEN_WITHIN_S = 30.0
_POLL_S = 0.1
_SIGNAL_EVERY_S = 2.0
_ASK_EVERY_S = 5.0
_MUST_BE_ALIKE = ("python", "torch", "numpy", "dist-trainer")
_ALL = "nodes"


def examine_nodes(
    subject: Subject, *, minutes: int, wait_s: float, say: Callable[[str], None], requests: StopRequests
) -> list[Finding]:
    """What each node found, one finding a node, then what holds of all of them.

    A request to stop raises StopRequested, only while nodes are waited for: then srun and its job are ended, and the
    folder goes, whatever else is asked meanwhile.
    """
    job = SlurmJob.from_environment()
    size = job.node_count if job is not None else subject.config.slurm.nodes
    try:
        with scratch(nearest(subject.runs)) as folder:
            request = Request(subject.arguments, str(subject.runs), str(Path.cwd()))
            write_json(folder / "request.json", asdict(request))
            command = python("dist_trainer.doctor.node", str(folder))
            with on_nodes(subject.config.slurm, command, minutes=minutes) as running:
                with requests.interrupting():
                    problem = _wait(running, folder, size, wait_s, say)
                    reports = _reports(folder, size) if problem is None else []
                return [
                    *_of_nodes(reports),
                    *([problem] if problem else _of_all(reports, running, size, subject)),
                ]
    except SchedulerUnavailable as error:
        words, _, advice = str(error).partition("; ")
        return [Finding("SLURM", "broken", words, advice)]
    except (OSError, DistTrainerError) as error:
        return [Finding("run folder", "broken", words_of(error), "choose another place with --runs")]


def _wait(
    running: OnNodes, folder: Path, size: int, wait_s: float, say: Callable[[str], None]
) -> Finding | None:
    """Wait for the nodes to arrive, send them the signal that they wait for, and wait for their end."""
    deadline, asked, told = time.monotonic() + wait_s, 0.0, ""
    while not (running.is_over or arrived(folder, size) or _saying(running, BLIND)):
        if running.own_job and time.monotonic() - asked > _ASK_EVERY_S:
            asked, reason = time.monotonic(), running.why_it_waits()
            words = "" if reason is None else f"job {running.own_job} waits: {why_it_waits(reason)}"
            if words not in ("", told):
                told = words
                say(words)
        if time.monotonic() > deadline:
            return _never_began(running, wait_s, told)
        time.sleep(_POLL_S)
    for here in arrived(folder, size).values():
        running.note_step(here.step)
    _send_signal(running, _let_arrive(running, folder, size))
    wait_until_over(running, _NODES_WITHIN_S)
    return None


def _saying(running: OnNodes, word: str) -> list[str]:
    """The nodes that have printed this: that they do not see the folder, or that they were signalled."""
    return sorted(line.split()[1] for line in running.heard if line.startswith(f"{word} "))


def _never_began(running: OnNodes, wait_s: float, told: str) -> Finding:
    words = told or running.said or "nothing was heard of them"
    advice = (
        "--slurm-wait waits longer; in a job that is there (salloc, then the same command) it need not wait"
    )
    return Finding(_ALL, "warning", f"{words}; no longer waited for after {wait_s:g} s", advice)


def _let_arrive(running: OnNodes, folder: Path, size: int) -> dict[int, Here]:
    """All of them, or those who come in time."""
    deadline, found = time.monotonic() + ARRIVE_WITHIN_S, dict[int, Here]()
    while len(found := arrived(folder, size, found)) + len(_saying(running, BLIND)) < size:
        if running.is_over or time.monotonic() > deadline:
            break
        time.sleep(max(_POLL_S, poll_s(size)))
    return found


def _send_signal(running: OnNodes, there: dict[int, Here]) -> None:
    """Until each of those that are there has had it."""
    deadline, sent = time.monotonic() + SIGNAL_WITHIN_S, 0.0
    while len(_saying(running, SIGNALLED)) < len(there):
        if running.is_over or time.monotonic() > deadline:
            return
        if time.monotonic() - sent > _SIGNAL_EVERY_S:
            running.signal(there[min(there)].step)
            sent = time.monotonic()
        time.sleep(_POLL_S)


def _reports(folder: Path, size: int) -> list[Report]:
    """Those that can be seen; what another node wrote last may take a moment."""
    deadline, found = time.monotonic() + _SEEN_WITHIN_S, dict[int, Report]()
    while True:
        found = read_new(Report, folder, "report-{}.json", size, found)
        is_all = len(found) == len(arrived(folder, size))
        if is_all or time.monotonic() > deadline:
            return list(found.values())
        time.sleep(max(_POLL_S, poll_s(size)))


def _of_nodes(reports: Sequence[Report]) -> Iterator[Finding]:
    for report in reports:
        for finding in report.findings:  # what is shared is told by the first node, for all of them
            is_of_all = finding.name.startswith(SHARED) and len(reports) > 1
            yield finding if is_of_all else replace(finding, nodes=(report.node,))


def _of_all(reports: Sequence[Report], running: OnNodes, size: int, subject: Subject) -> Iterator[Finding]:
    blind = _saying(running, BLIND)
    if blind:
        words = "the folder of runs is not there, or not the one of this machine"
        advice = "--runs must be on a file system that every node sees, under the same path"
        yield Finding("run folder", "broken", words, advice, nodes=tuple(blind))
    if len(reports) + len(blind) < size:
        words = f"{len(reports)} of {size} reported"
        said = running.said[:400]
        yield Finding(
            _ALL, "broken", f"{words}; srun says: {said}" if said else words, _advice(said, subject)
        )
    elif not blind:
        yield Finding(_ALL, "fine", f"{', '.join(report.node for report in reports)}: all reported")
    if len(reports) > 1:
        yield _clocks(reports)
        yield from compare_versions({report.node: report.versions for report in reports})


def _advice(said: str, subject: Subject) -> str:
    if "No such file" in said or "execve" in said:
        return "Python must be at the same path on every node: slurm.setup may load it"
    if "Invalid" in said or "invalid" in said:
        return "slurm: look at partition, account and options"
    if subject.config.slurm.setup:
        return "slurm.setup runs first: try its lines on a node (srun --pty bash)"
    return "srun -N2 hostname shows whether the cluster itself starts anything"


def _clocks(reports: Sequence[Report]) -> Finding:
    """Each node has compared its clock with the one file system's; that tells how they stand to each other."""
    ahead = {report.node: report.clock_ahead_s for report in reports if report.clock_ahead_s is not None}
    if len(ahead) < len(reports):
        return Finding("nodes' clocks", "skipped", "not every node could read its own against the disk's")
    first, last = min(ahead, key=lambda node: ahead[node]), max(ahead, key=lambda node: ahead[node])
    finding = judge_clock("nodes' clocks", ahead[last] - ahead[first])
    return replace(finding, found=f"{last} is ahead of {first}" if finding.state != "fine" else "")


def compare_versions(versions: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Node to package to version: what is not the same everywhere. The ranks would refuse to train together."""
    names = sorted({name for each in versions.values() for name in each})
    different = [name for name in names if len({each.get(name) for each in versions.values()}) > 1]
    for name in different:
        found = ", ".join(f"{each.get(name, 'none')} on {node}" for node, each in versions.items())
        state: State = "broken" if name in _MUST_BE_ALIKE else "warning"
        yield Finding("nodes' versions", state, f"{name}: {found}", "give every node the same environment")
    if not different:
        yield Finding("nodes' versions", "fine", f"the same {len(names)} packages")


def fold(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that say the same of several nodes as one, for people; measurements become ranges."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.name, finding.state, finding.found, finding.advice, "" if finding.nodes else "all")
        groups.setdefault(key, []).append(finding)
    everybody = {node for finding in findings for node in finding.nodes}
    return [_folded(group, len(everybody)) for group in _by_name(groups)]


def _by_name(groups: dict[tuple[str, ...], list[Finding]]) -> Iterator[list[Finding]]:
    """In the order in which names came first, so that the nodes of one check stand together."""
    names = dict.fromkeys(key[0] for key in groups)
    for name in names:
        yield from (group for key, group in groups.items() if key[0] == name)


def _folded(group: Sequence[Finding], size: int) -> Finding:
    nodes = [node for finding in group for node in finding.nodes]
    text = with_measured(group[0].found, [finding.measured for finding in group])
    return replace(group[0], found=text, measured={}, nodes=_short(nodes, size))


def _short(nodes: Sequence[str], size: int) -> tuple[str, ...]:
    """Nobody is named where it holds of all, and not everybody where it holds of many."""
    if len(nodes) == size and size > 1:
        return ("all nodes",) if size > 3 else tuple(nodes)
    return (*nodes[:3], f"{len(nodes) - 3} more") if len(nodes) > 4 else tuple(nodes)
