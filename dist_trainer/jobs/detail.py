"""One run in detail: its job, every attempt with its cause, its requeues, and where its logs are."""

import json
import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dist_trainer.jobs.log_files import logs_of, newest_attempt, rank_logs
from dist_trainer.jobs.standing import Standing, clock
from dist_trainer.jobs.table import duration, steps, style_of
from dist_trainer.launchers.results import in_folder
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import jobs_of, last_job

_INDENT = " " * 7
_FACT_INDENT = " " * 12
_SHOWN_RANKS = 8


def detail_as_json(run: RunFolder, row: Standing) -> dict[str, Any]:
    """The same for programs."""
    return {**vars(row), "submissions": [vars(job) for job in jobs_of(run)], "attempt_lines": run.attempts()}


def show_detail(run: RunFolder, row: Standing, console: Console, *, problem: str = "") -> None:
    """Print it."""
    console.print(Text(row.run, style="bold").append("  ").append(row.state, style=style_of(row.state)))
    for label, value in _facts(run, row):
        first = f"  {label:<10}"
        for text in [value] if isinstance(value, str) else value:
            _print(console, first, text, _FACT_INDENT)
            first = _FACT_INDENT
    lines = run.attempts()
    if lines:
        console.print(Text("attempts", style="bold"))
    for head, *more in _attempts(lines, runs=row.state == "running"):
        _print(console, "", head, _INDENT)
        for text in more:
            _print(console, _INDENT, text, _INDENT)
    _print(console, "", problem, "", style="yellow")


def _facts(run: RunFolder, row: Standing) -> list[tuple[str, str | Sequence[str]]]:
    """What is known under its label: a text, or one for each line."""
    loss = f", loss {row.loss:.4g}" if row.loss is not None else ""
    step = f"{steps(row)}{loss}{_left(row)}" if row.step is not None else ""
    jobs = [job.job for job in jobs_of(run)]
    earlier = f" (before: {', '.join(jobs[:-1])})" if jobs[:-1] else ""
    said = f", {row.slurm_state} by {row.source}" if row.slurm_state else ""
    return [
        ("now", row.note),
        ("job", f"{row.job}{said}{earlier}" if row.job else ""),
        ("nodes", row.nodes),
        ("step", step),
        ("job ends", _job_end(row)),
        ("folder", row.folder),
        *_outputs(run),
        ("code", _code(run)),
    ]


def _outputs(run: RunFolder) -> list[tuple[str, Sequence[str]]]:
    agents, ranks = logs_of(run, None, None), rank_logs(run)
    if not agents and not newest_attempt(run):
        return []
    shown = [*map(_path, ranks[:_SHOWN_RANKS])]
    if len(ranks) > len(shown):
        shown.append(f"and {len(ranks) - len(shown)} more beside them")
    command = f"dist-trainer logs {run.path.name}{in_folder(run.path.parent)}"
    return [("output", [command]), ("agents", [*map(_path, agents)]), ("ranks", shown)]


def _path(path: Path) -> str:
    """As it can be given to a command here, and short where it is below the folder we are in."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _code(run: RunFolder) -> str:
    """The copy that the last job runs, and the commit that it is of."""
    job = last_job(run)
    if job is None or job.code is None:
        return ""
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(Path(os.path.normpath(run.path / f"{job.code}.json")).read_text())
    if not isinstance(known, dict):
        return job.code
    commit = f", commit {str(known['commit'])[:7]}" if known.get("commit") else ""
    return f"{job.code}{commit}{', with changes' if commit and known.get('dirty') else ''}"


def _left(row: Standing) -> str:
    if row.remaining_s is None:
        return ""
    until = f", till about {clock(time.time() + row.remaining_s)}" if row.state == "running" else ""
    return f", {duration(row.remaining_s)} left{until}"


def _job_end(row: Standing) -> str:
    if row.job_end is None:
        return ""
    end = f"at {clock(row.job_end)} by its time limit"
    if row.remaining_s is not None and time.time() + row.remaining_s > row.job_end:
        return f"{end}, before the run does: it will save, and go on in the queue"
    return end


def _attempts(lines: list[dict[str, Any]], *, runs: bool) -> list[list[str]]:
    """The lines of each start with its end, and those of each requeue."""
    ends = {line["attempt"]: line for line in lines if line["event"] == "end"}
    newest = max((line["attempt"] for line in lines), default=0)
    shown = []
    for line in lines:
        if line["event"] == "start":
            goes_on = runs and line["attempt"] == newest
            shown.append(_attempt(line, ends.get(line["attempt"]), goes_on=goes_on))
        elif line["event"] == "requeue":
            says = line.get("says") or line.get("cause")
            without = f", without {', '.join(line['excluded'])}" if line.get("excluded") else ""
            shown.append([f"{_INDENT}{clock(line.get('time', 0.0))}  requeued: {says}{without}"])
    return shown


def _attempt(start: Mapping[str, Any], end: Mapping[str, Any] | None, *, goes_on: bool) -> list[str]:
    nodes = ", ".join(start.get("nodes", ()))
    job = f" (job {start['job']})" if start.get("job") else ""
    head = f"  {start['attempt']:>3}  {clock(start.get('time', 0.0))}  from step {start.get('first_step', 0)}"
    if end is None:
        return [f"{head} on {nodes}{job}", "still running" if goes_on else "no word of an end"]
    last = f" to {end['last_step']}" if end.get("last_step") is not None else ""
    lasted = duration(end.get("time", 0.0) - start.get("time", 0.0))
    node = f" on {end['node']}" if end.get("node") else ""
    error = f": {str(end['error']).splitlines()[0]}" if end.get("error") else ""
    return [f"{head}{last} in {lasted} on {nodes}{job}", f"{end.get('cause')}{node}{error}"]


def _print(console: Console, first: str, text: str, indent: str, *, style: str = "") -> None:
    """Lines that fit, the later ones indented; a word longer than a line, such as a path, stays whole."""
    lines = textwrap.wrap(
        text,
        max(40, console.width),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        _say(console, line, style=style)


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
