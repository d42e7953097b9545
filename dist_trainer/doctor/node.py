"""One node of a job, examined: python -m dist_trainer.doctor.node FOLDER, once on each node by srun.

It writes report-<rank>.json into the folder. A node that cannot see the folder prints `blind NAME`, and one that got
the signal `signalled NAME`: until then it is sent again.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.listening import listen_on
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.adapters.records import read_record
from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor.checks import Check, run_checks
from dist_trainer.doctor.examine import examine
from dist_trainer.doctor.file_system import clock_ahead_s
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.network import Across
from dist_trainer.doctor.subject import subject_of
from dist_trainer.doctor.together import ARRIVE_WITHIN_S, TOGETHER_WITHIN_S, Nodes
from dist_trainer.errors import DistTrainerError

BLIND, SIGNALLED = "blind", "signalled"
_SEEN_WITHIN_S = 15.0
SIGNAL_WITHIN_S = 60.0  # who sends it may see late that we are here


@dataclass(frozen=True)
class Request:
    """What is asked for: the command's own arguments, which each node reads for itself."""

    arguments: tuple[str, ...]
    runs: str
    working_folder: str


@dataclass(frozen=True)
class Report:
    """What a node found."""

    node: str
    findings: tuple[Finding, ...]
    clock_ahead_s: float | None  # of the file system's clock
    versions: dict[str, str]


def main(folder: Path) -> None:
    """Arrive, wait for the signal that is sent to try it, examine, report."""
    job = SlurmJob.from_environment()
    if job is None:
        raise DistTrainerError("this is a part of dist-trainer doctor --slurm, and runs in a job")
    signalled = threading.Event()
    signal.signal(signal.SIGUSR2, lambda number, frame: signalled.set())
    request = _request(folder)
    if request is None:
        print(f"{BLIND} {job.node}", flush=True)
        return
    nodes = Nodes(folder, job)
    nodes.arrive()
    with suppress(DistTrainerError):  # who does not come is told of by the checks
        nodes.all_here()
    reached = signalled.wait(SIGNAL_WITHIN_S)
    if reached:
        print(f"{SIGNALLED} {job.node}", flush=True)
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGUSR2}
    )  # of our checks' processes one more would end some
    findings = [_signal_finding(reached), *_examine(request, nodes)]
    report = Report(job.node, tuple(findings), _clock(folder), installed_versions())
    write_json(folder / f"report-{job.node_rank}.json", asdict(report))


def _examine(request: Request, nodes: Nodes) -> list[Finding]:
    try:
        os.chdir(request.working_folder)
        subject = subject_of(request.arguments, Path(request.runs))
    except (OSError, DistTrainerError) as error:
        advice = "every node must see the folder that the command is given in, and the files that it names"
        return [Finding("configuration", "broken", str(error).splitlines()[0], advice)]
    shared = Check("shared files", nodes.check_files, TOGETHER_WITHIN_S)
    return examine(
        subject,
        across=partial(_across, nodes),
        meet_within_s=ARRIVE_WITHIN_S,
        more=[shared],
        with_cluster=False,
    )


def _across(nodes: Nodes) -> Across | None:
    """How to meet the others; None where they do not come, which the shared files tell of."""
    with suppress(DistTrainerError):
        return nodes.across(listen_on)
    return None


def _signal_finding(reached: bool) -> Finding:
    if reached:
        return Finding("signals", "fine", "USR2 reaches the job's processes")
    advice = "a preempted run could not save: ask the administrator (ProctrackType, scancel --signal)"
    return Finding("signals", "broken", f"no USR2 within {SIGNAL_WITHIN_S:g} s", advice)


def _request(folder: Path) -> Request | None:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while True:
        try:
            return read_record(Request, (folder / "request.json").read_bytes())
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)


def _clock(folder: Path) -> float | None:
    measured: list[float] = []

    def measure() -> Iterator[Finding]:
        measured.append(clock_ahead_s(folder))
        return iter(())

    run_checks([Check("clock", partial(measure))])
    return measured[0] if measured else None


def installed_versions() -> dict[str, str]:
    """Of every package that is installed, and of Python; a folder that an interrupted pip left has no name."""
    found = {"python": sys.version.split()[0]}
    for each in distributions():
        with suppress(FileNotFoundError):  # said so by the importlib_metadata package, where that is imported
            if facts := each.metadata:
                name, number = ("".join((facts.get_all(key) or ())[:1]) for key in ("Name", "Version"))
                if name:
                    found.setdefault(name, number or "unknown")  # the first one is what is imported
    return found


if __name__ == "__main__":
    keep_private()
    main(Path(sys.argv[1]))
    leave(0)
