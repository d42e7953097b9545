"""Which log files a run has: one for each rank of each attempt, and those of the nodes' agents.

logs/attempt-0003/rank-0.log        what a rank prints
logs/agent-0.log                    what an agent prints where it has no terminal
slurm/<job>_<task>_log.out          what each node's agent and the job's script print, under SLURM
"""

import re
from pathlib import Path

from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.submissions import jobs_of
from dist_trainer.spans import ranges

AGENT = "agent"


def rank_of(run: RunFolder, text: str | None, attempt: int | None) -> int | None:
    """The rank that --rank names; None for the agents, which have the progress of a submitted run. UsageError."""
    if text is None:
        text = AGENT if jobs_of(run) and attempt is None else "0"
    if text == AGENT:
        return None
    if text.isdigit():
        return int(text)
    raise UsageError(
        f"--rank must be a rank's number, or {AGENT!r} for what the nodes' agents print, got {text!r}"
    )


def logs_of(run: RunFolder, rank: int | None, attempt: int | None) -> list[Path]:
    """The files there now: one of a rank, or those of every agent; none where there is none yet."""
    if rank is None:
        return _agents(run, attempt)
    number = newest_attempt(run) if attempt is None else attempt
    path = run.log_path(number, rank)
    return [path] if path.is_file() else []


def rank_logs(run: RunFolder) -> list[Path]:
    """Those of the newest attempt that have something in them, by rank."""
    found = run.log_path(newest_attempt(run), 0).parent.glob("rank-*.log")
    return sorted(
        (path for path in found if path.stat().st_size), key=lambda path: (len(path.name), path.name)
    )


def newest_attempt(run: RunFolder) -> int:
    """The newest attempt that has logs; 0 before the first."""
    return max(_attempts(run), default=0)


def no_log(run: RunFolder, rank: int | None, attempt: int | None) -> UsageError:
    """What to say where there is no such file: names those that are there."""
    attempts = _attempts(run)
    name = run.path.name
    if rank is None:
        return UsageError(f"run {name} has no log of an agent: it was never submitted, or has not started")
    if not attempts:
        return UsageError(f"run {name} has no logs yet: it has not started")
    if attempt is not None and attempt not in attempts:
        return UsageError(f"run {name} has no logs of attempt {attempt}; those there: {ranges(attempts)}")
    number = max(attempts) if attempt is None else attempt
    ranks = [
        int(found[1])
        for path in run.log_path(number, 0).parent.iterdir()
        if (found := re.fullmatch(r"rank-(\d+)[.]log", path.name))
    ]
    there = f"ranks that have one: {ranges(ranks)}" if ranks else "none has one yet"
    return UsageError(f"run {name}, attempt {number}, has no log of rank {rank}; {there}")


def _attempts(run: RunFolder) -> list[int]:
    """Those with a file in their folder: it is made a moment before the workers start."""
    folders = (run.path / "logs").glob("attempt-*")
    return [
        int(folder.name.removeprefix("attempt-"))
        for folder in folders
        if folder.name.removeprefix("attempt-").isdigit() and any(folder.glob("rank-*.log"))
    ]


def _agents(run: RunFolder, attempt: int | None) -> list[Path]:
    submissions = jobs_of(run)
    job = submissions[-1].job if submissions else None
    if attempt is not None:
        starts = [line for line in run.attempts() if line["event"] == "start" and line["attempt"] == attempt]
        if not starts:
            raise UsageError(f"run {run.path.name} has no attempt {attempt}")
        job = starts[-1].get("job")
    own = sorted((run.path / "logs").glob("agent-*.log"))
    if job is None:
        return own
    named = re.compile(rf"{re.escape(job)}(_\d+)?_log[.]out")
    there = (path for path in (run.path / "slurm").glob("*_log.out") if named.fullmatch(path.name))
    written = sorted(path for path in there if path.is_file())  # a cell's are links, there before their files
    return written + own
