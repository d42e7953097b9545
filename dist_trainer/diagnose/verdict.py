"""How a run, or one attempt of it, stands and why: one sentence in plain words."""

import socket
import time
from collections.abc import Mapping
from typing import Any, Literal

from dist_trainer.diagnose.evidence import Evidence, whole
from dist_trainer.diagnose.machine import SlurmWord
from dist_trainer.diagnose.ranks import FirstFailed
from dist_trainer.diagnose.saved import Saved
from dist_trainer.diagnose.words import one_line
from dist_trainer.jobs.standing import WAITING, Standing
from dist_trainer.jobs.table import duration

State = Literal[
    "new", "running", "starting", "waiting", "finished", "stopped", "failed", "given up", "lost", "unknown"
]
_REASONS = {
    "SIGTERM or SIGINT": "it was told to, by SIGTERM or Ctrl-C",
    "SIGUSR2": "the machine was wanted back (SIGUSR2)",
    "time limit": "the time of its job was nearly up",
    "preempted": "the job was preempted",
}


def state_of(evidence: Evidence, standing: Standing | None, first: FirstFailed | None) -> State:
    """How it stands; an earlier attempt by its last line alone."""
    if not evidence.is_newest:
        return _by_line(evidence.end, first)
    if standing is not None and standing.state in WAITING:
        return "waiting"
    if standing is not None and standing.state in ("running", "starting"):
        return "running" if evidence.beats else "starting"
    status = evidence.status
    if status is None:
        return _by_line(evidence.end, first)
    if status.state == "do-not-requeue":
        return "given up"
    if status.state in ("finished", "stopped", "failed") and not _died_since(evidence):
        return status.state
    if status.state == "new" and evidence.attempt == 0:
        died = standing is not None and standing.state == "lost"  # its job has ended, and had not begun it
        return "lost" if died else "stopped" if standing and standing.state == "stopped" else "new"
    return "lost"


def _died_since(evidence: Evidence) -> bool:
    """Whether a newer attempt than the one that the status speaks of began, and left no word at all."""
    told = {line["attempt"] for line in evidence.lines}
    return bool(told) and evidence.attempt not in told and not evidence.words


def _by_line(end: Mapping[str, Any] | None, first: FirstFailed | None) -> State:
    if end is None:
        return "failed" if first else "lost"
    if first is not None or whole(end.get("exit_code")) not in (0, 75):
        return "failed" if first is not None else "lost"
    return "finished" if end.get("cause") == "finished" else "stopped"


def sentence(
    state: State,
    evidence: Evidence,
    *,
    first: FirstFailed | None,
    standing: Standing | None,
    slurm: SlurmWord | None,
    saved: Saved,
    step: int | None,
) -> str:
    """It in words."""
    of = f" of {evidence.total_steps}" if evidence.total_steps else ""
    if state == "failed" or state == "given up":
        why = first.what if first else (evidence.status.reason if evidence.status else "")
        return f"{state}: {_first_line(why) or 'nobody said why'}"
    if state == "finished":
        early = f"{of}, by early stopping" if step and step < (evidence.total_steps or 0) else ""
        return f"finished at step {step}{early}"
    if state == "stopped":
        return _stopped(evidence, saved, standing)
    if state == "lost":
        return f"lost: {_why_lost(evidence, slurm)}"
    if state == "waiting" and standing is not None:
        return f"{standing.state}: {standing.note}"
    if state in ("running", "starting"):
        return _running(state, evidence, step, of)
    if state == "new":
        return f"new: {standing.note if standing and standing.note else 'no attempt was begun yet'}"
    return f"{state}: nothing in its folder says how it stands"


def _first_line(text: str) -> str:
    lines = [line for line in str(text).splitlines() if line.strip()]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return f"{one_line(lines[0])}{more}" if lines else ""


def _stopped(evidence: Evidence, saved: Saved, standing: Standing | None) -> str:
    status, end = evidence.status, evidence.end or {}
    told = (status.reason if status and evidence.is_newest else "") or str(end.get("cause") or "")
    told = told or (standing.note if standing else "") or "nobody said why"
    reason = _REASONS.get(told, _first_line(told))
    if not evidence.is_newest:
        return f"stopped at step {end.get('last_step')}; {reason}"
    if saved.step is None:
        return f"stopped; nothing was saved yet; {reason}"
    return f"stopped; saved at step {saved.step}; {reason}"


def _why_lost(evidence: Evidence, slurm: SlurmWord | None) -> str:
    if slurm is not None and slurm.state and not slurm.is_live:
        return slurm.says
    if (cause := (evidence.end or {}).get("cause")) is not None:
        return one_line(cause)
    where = f" on {', '.join(evidence.nodes[:4])}" if evidence.nodes else ""
    before = "" if evidence.start else ", before the first step"
    return f"the command that trained it{where} died without a word{before}: it was killed, or its machine went down"


def _running(state: str, evidence: Evidence, step: int | None, of: str) -> str:
    if state == "starting":
        return "starting: no rank has shown a sign of life yet"
    newest = max(evidence.beats.values(), key=lambda beat: beat.time)
    doing = one_line(newest.phase)
    here = evidence.owner is not None and evidence.owner.host == socket.gethostname()
    # the beats' clock is its host's own: the age is told where that is ours
    age = f", last sign of life {duration(max(0.0, time.time() - newest.time))} ago" if here else ""
    return f"running: step {step}{of}, {doing}{age}"
