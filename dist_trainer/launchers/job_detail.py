"""One run in detail: its job, every attempt with its cause, its requeues, and where its logs are."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from dist_trainer.launchers.job_table import duration, steps, style_of
from dist_trainer.launchers.standing import Standing, clock
from dist_trainer.launchers.submissions import jobs_of
from dist_trainer.run_folder import RunFolder


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
    for line in _attempts(lines):
        _say(console, f"  {line}")
    if problem:
        _say(console, problem, style="yellow")


def _facts(run: RunFolder, row: Standing) -> list[tuple[str, str]]:
    number = run.highest_fence()
    left = f", {duration(row.remaining_s)} left" if row.remaining_s is not None else ""
    loss = f", loss {row.loss:.4g}" if row.loss is not None else ""
    step = f"{steps(row)}{loss}{left}" if row.step is not None else ""
    jobs = [job.job for job in jobs_of(run)]
    earlier = f" (before: {', '.join(jobs[:-1])})" if jobs[:-1] else ""
    said = f", {row.slurm_state} by {row.source}" if row.slurm_state else ""
    return [
        ("", row.note),
        ("job", f"{row.job}{said}{earlier}" if row.job else ""),
        ("nodes", row.nodes),
        ("step", step),
        ("job ends", _job_end(row)),
        ("folder", row.folder),
        ("log", str(run.log_path(number, 0)) if number else ""),
        ("agents", f"{run.path / 'slurm'}/*_log.out" if jobs else ""),
    ]


def _job_end(row: Standing) -> str:
    if row.job_end is None:
        return ""
    end = f"at {clock(row.job_end)} by its time limit"
    if row.remaining_s is not None and time.time() + row.remaining_s > row.job_end:
        return f"{end}, before the run does: it will save, and go on in the queue"
    return end


def _attempts(lines: list[dict[str, Any]]) -> list[str]:
    """A line for each start with its end, and one for each requeue."""
    ends = {line["attempt"]: line for line in lines if line["event"] == "end"}
    shown = []
    for line in lines:
        if line["event"] == "start":
            shown.append(_attempt(line, ends.get(line["attempt"], {})))
        elif line["event"] == "requeue":
            shown.append(_requeue(line))
    return shown


def _attempt(start: Mapping[str, Any], end: Mapping[str, Any]) -> str:
    nodes = ",".join(start.get("nodes", ()))
    job = f" in job {start['job']}" if start.get("job") else ""
    begun = f"{start['attempt']:>3}  {clock(start['time'])}  from step {start['first_step']}{job} on {nodes}"
    if not end:
        return f"{begun}: no word of an end"
    last = f" at step {end['last_step']}" if end.get("last_step") is not None else ""
    error = f": {str(end['error']).splitlines()[0]}" if end.get("error") else ""
    node = f" on {end['node']}" if end.get("node") else ""
    lasted = duration(end["time"] - start["time"])
    return f"{begun}: {end['cause']}{last}{node} after {lasted}{error}"


def _requeue(line: Mapping[str, Any]) -> str:
    excluded = f", without {', '.join(line['excluded'])}" if line.get("excluded") else ""
    return f"     {clock(line['time'])}  requeued: {line.get('cause')}{excluded}"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
