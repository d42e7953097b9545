"""Writes the end of attempts that died without a word: with their machine, or by a signal nobody can catch."""

import time
from typing import Any

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.errors import DistTrainerError
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm import scheduler

_CAUSES = {
    "NODE_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit",
    "OUT_OF_MEMORY": "out of memory",
    "REQUEUED": "requeued",
    "CANCELLED": "cancelled",
}
_UNKNOWN = "died without a word"


def close_lost_attempts(run: RunFolder, job: SlurmJob | None) -> None:
    """Give every attempt that has no end line one, with SLURM's word for the cause where it has one."""
    lines = run.attempts()
    ended = {line["attempt"] for line in lines if line["event"] == "end"}
    lost = [line for line in lines if line["event"] == "start" and line["attempt"] not in ended]
    if not lost:
        return
    states = _past_states(job)
    for start in lost:
        cause = (
            _CAUSES.get(states.get(start.get("restart", -1), ""), _UNKNOWN)
            if _is_of(start, job)
            else _UNKNOWN
        )
        nodes = start["nodes"]
        line = {"event": "end", "attempt": start["attempt"], "time": time.time(), "last_step": None}
        node = nodes[0] if len(nodes) == 1 else None
        run.record({**line, "cause": cause, "exit_code": None, "error": None, "node": node})


def _is_of(start: dict[str, Any], job: SlurmJob | None) -> bool:
    return job is not None and start.get("job") == job.job


def _past_states(job: SlurmJob | None) -> dict[int, str]:
    """SLURM's state of each earlier start of the job, by its number; nothing where no accounts are kept."""
    if job is None or job.restart == 0:
        return {}
    try:
        return dict(enumerate(scheduler.past_states(job.job)))
    except DistTrainerError:
        return {}
