"""What the command shows: the findings of this machine or of all nodes, for people or as JSON."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_trainer.doctor.checks import Check, is_any_hung, let_checks_end, run_checks
from dist_trainer.doctor.cluster import check_cluster
from dist_trainer.doctor.examine import examine
from dist_trainer.doctor.findings import STATES, Finding, exit_code, worst
from dist_trainer.doctor.nodes import examine_nodes, fold
from dist_trainer.doctor.subject import Subject, subject_of
from dist_trainer.launchers.signals import StopRequested, StopRequests

INTERRUPTED = 130  # as a shell has it after Ctrl-C
_TO_CLEAN_UP_S = 2.0


def report(arguments: Sequence[str], runs: Path, *, as_json: bool, minutes: int | None, wait_s: float) -> int:
    """Examine and show; the exit code. `minutes`: of the nodes' job; None: this machine.

    INT, TERM and HUP end it, with all that it began: its checks' folders, srun and the job.
    """
    subject = subject_of(arguments, runs)
    try:
        with StopRequests().listening() as requests, _busy():
            found = (
                _here(subject, requests) if minutes is None else _nodes(subject, minutes, wait_s, requests)
            )
    except StopRequested:
        return _ended(_interrupted(as_json))
    _print(found, as_json=as_json, is_of_nodes=minutes is not None)
    return _ended(exit_code(found))


def _print(found: Sequence[Finding], *, as_json: bool, is_of_nodes: bool) -> None:
    if as_json:
        counts = {state: sum(finding.state == state for finding in found) for state in STATES}
        print(json.dumps({**counts, "findings": [finding.as_json() for finding in found]}, indent=2))
    else:
        _show(fold(found) if is_of_nodes else found)


def _interrupted(as_json: bool) -> int:
    let_checks_end(_TO_CLEAN_UP_S)
    with suppress(OSError):  # the terminal may be gone
        print("interrupted", file=sys.stderr)
        if as_json:
            print(
                json.dumps({"state": "stopped", "exit_code": INTERRUPTED, "error": "interrupted"}, indent=2)
            )
    return INTERRUPTED


def _ended(code: int) -> int:
    """The code; where a check hangs the process ends here: at its usual end it would wait for a library's threads."""
    if is_any_hung():
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


@contextmanager
def _busy() -> Iterator[None]:
    """On a terminal a word for the seconds that it takes."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("looking"):
        yield


def _here(subject: Subject, requests: StopRequests) -> list[Finding]:
    with requests.interrupting():
        return examine(subject)


def _nodes(subject: Subject, minutes: int, wait_s: float, requests: StopRequests) -> list[Finding]:
    with requests.interrupting():
        settings = run_checks([Check("SLURM", lambda: check_cluster(subject), within_s=60.0)])

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    if worst(settings) == "broken":
        return [*settings, Finding("nodes", "skipped", "not asked for, since SLURM would not give them")]
    found = examine_nodes(subject, minutes=minutes, wait_s=wait_s, say=say, requests=requests)
    return [*settings, *found]


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console

    from dist_trainer.doctor.screen import show

    show(findings, Console(highlight=False))
