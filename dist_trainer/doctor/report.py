"""What the command shows: the findings of this machine or of all nodes, for people or as JSON."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.doctor.checks import Check, is_any_hung, run_checks
from dist_trainer.doctor.cluster import check_cluster
from dist_trainer.doctor.examine import examine
from dist_trainer.doctor.findings import STATES, Finding, exit_code, worst
from dist_trainer.doctor.nodes import examine_nodes, fold
from dist_trainer.doctor.subject import Subject, subject_of


def report(arguments: Sequence[str], runs: Path, *, as_json: bool, minutes: int | None, wait_s: float) -> int:
    """Examine and show; the exit code. `minutes`: of the nodes' job; None: this machine.

    Where a check hangs the process ends here: at its usual end it would wait for a library's threads.
    """
    subject = subject_of(arguments, runs)
    with _busy():
        found = examine(subject) if minutes is None else _nodes(subject, minutes, wait_s)
    if as_json:
        counts = {state: sum(finding.state == state for finding in found) for state in STATES}
        print(json.dumps({**counts, "findings": [finding.as_json() for finding in found]}, indent=2))
    else:
        _show(found if minutes is None else fold(found))
    if is_any_hung():
        sys.stdout.flush()
        os._exit(exit_code(found))
    return exit_code(found)


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


def _nodes(subject: Subject, minutes: int, wait_s: float) -> list[Finding]:
    settings = run_checks([Check("SLURM", lambda: check_cluster(subject), within_s=60.0)])

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    if worst(settings) == "broken":
        return [*settings, Finding("nodes", "skipped", "not asked for, since SLURM would not give them")]
    return [*settings, *examine_nodes(subject, minutes=minutes, wait_s=wait_s, say=say)]


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console

    from dist_trainer.doctor.screen import show

    show(findings, Console(highlight=False))
