"""One run in detail: its job, every attempt with its cause, its requeues, and where its logs are."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from dist_trainer.jobs.log_files import logs_of, newest_attempt
from dist_trainer.jobs.standing import Standing, clock
from dist_trainer.jobs.table import duration, steps, style_of
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import jobs_of

_INDENT = " " * 7


def detail_as_json(run: RunFolder, row: Standing) -> dict[str, Any]:
    """The same for programs."""
    return {**vars(row), "submissions": [vars(job) for job in jobs_of(run)], "attempt_lines": run.attempts()}


def show_detail(run: RunFolder, row: Standing, console: Console, *, problem: str = "") -> None:
    """Print it."""
    console.print(Text(row.run, style="bold").append("  ").append(row.state, style=style_of(row.state)))
    for label, value in _facts(run, row):
        if value:
            _say(console, f"  {label:<9} {value}")
    lines = run.attempts()
    if lines:
        console.print(Text("attempts", style="bold"))
    for head, *more in _attempts(lines, runs=row.state == "running"):
        _say(console, head)
        for text in more:
            for part in Text(text).wrap(console, max(40, console.width - len(_INDENT))):
                _say(console, f"{_INDENT}{part.plain.rstrip()}")
    if problem:
        _say(console, problem, style="yellow")


def _facts(run: RunFolder, row: Standing) -> list[tuple[str, str]]:
    number = newest_attempt(run)
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
        ("log", str(run.log_path(number, 0)) if number else ""),
        ("agents", ", ".join(map(str, logs_of(run, None, None)))),
    ]


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
            without = f", without {', '.join(line['excluded'])}" if line.get("excluded") else ""
            shown.append(
                [f"       {clock(line['time'])}  requeued: {line.get('says') or line['cause']}{without}"]
            )
    return shown


def _attempt(start: Mapping[str, Any], end: Mapping[str, Any] | None, *, goes_on: bool) -> list[str]:
    nodes = ", ".join(start.get("nodes", ()))
    job = f" (job {start['job']})" if start.get("job") else ""
    head = f"  {start['attempt']:>3}  {clock(start['time'])}  from step {start['first_step']}"
    if end is None:
        return [f"{head} on {nodes}{job}", "still running" if goes_on else "no word of an end"]
    last = f" to {end['last_step']}" if end.get("last_step") is not None else ""
    lasted = duration(end["time"] - start["time"])
    node = f" on {end['node']}" if end.get("node") else ""
    error = f": {str(end['error']).splitlines()[0]}" if end.get("error") else ""
    return [f"{head}{last} in {lasted} on {nodes}{job}", f"{end['cause']}{node}{error}"]


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
