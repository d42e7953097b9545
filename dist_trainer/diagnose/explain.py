"""`dist-trainer explain`: everything about a run after a failure, gathered for one screen. Reads, and no more."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from dist_trainer.diagnose.advice import Advice, advise
from dist_trainer.diagnose.earlier import before, comes_back
from dist_trainer.diagnose.evidence import UNREADABLE, Evidence, gather, whole
from dist_trainer.diagnose.machine import SlurmWord, slurm_word, standing_of
from dist_trainer.diagnose.ranks import FirstFailed, first_failed, others
from dist_trainer.diagnose.saved import Saved, look
from dist_trainer.diagnose.verdict import State, sentence, state_of
from dist_trainer.run_folder import RunFolder

T = TypeVar("T")
U = TypeVar("U")
_FAILED = ("failed", "given up", "lost")


@dataclass(frozen=True)
class Explanation:
    """What the screen shows, and --json prints; what is not known is None or empty."""

    run: str
    folder: str
    state: State
    sentence: str
    attempt: int
    attempts: int
    step: int | None  # the last that was done
    total_steps: int | None
    first_failed: FirstFailed | None
    others: Sequence[str]
    saved: Saved
    steps_to_repeat: int | None  # between what is saved and what was done
    earlier: Sequence[str]
    comes_back: str  # what several attempts have in common
    slurm: SlurmWord | None
    unreadable: Sequence[str]
    change_first: str = ""
    next: str = ""  # the command to give

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def explain(run: RunFolder, attempt: int | None = None) -> Explanation:
    """Explain a run's newest attempt, or an earlier one. UsageError where there is no such attempt."""
    evidence = gather(run, attempt)
    first = _part(evidence, "the errors of its ranks", lambda: first_failed(evidence), None)
    standing, slurm, saved = standing_of(evidence), slurm_word(evidence), look(evidence)
    state = state_of(evidence, standing, first)
    if state not in _FAILED:
        first = None  # what an attempt before it left, or nothing that matters any more
    step = _step(state, evidence, first)
    says = partial(
        sentence, state, evidence, first=first, standing=standing, slurm=slurm, saved=saved, step=step
    )
    advice = partial(advise, state, evidence, first=first, saved=saved, slurm=slurm)
    matters = state in (*_FAILED, "running")
    told = Explanation(
        run=run.path.name,
        folder=str(run.path),
        state=state,
        sentence=_part(evidence, "how it stands", says, str(state)),
        attempt=evidence.attempt,
        attempts=evidence.newest,
        step=step,
        total_steps=evidence.total_steps,
        first_failed=first,
        others=_part(evidence, "the other ranks", lambda: others(evidence, first), list[str]())
        if matters
        else [],
        saved=saved,
        steps_to_repeat=_to_repeat(state, evidence, step, saved),
        earlier=_part(evidence, "earlier attempts", lambda: before(evidence), list[str]()),
        comes_back=_part(evidence, "earlier attempts", lambda: comes_back(evidence, first), ""),
        slurm=slurm,
        unreadable=evidence.problems,
    )
    way_on = _part(evidence, "what to do next", advice, Advice("", f"dist-trainer jobs {run.path.name}"))
    return replace(told, change_first=way_on.first, next=way_on.command)


def _part(evidence: Evidence, name: str, read: Callable[[], T], otherwise: U) -> T | U:
    """What `read` makes of the evidence; its values may be of any type, so this may fail anywhere."""
    try:
        return read()
    except UNREADABLE as error:
        evidence.problems.append(f"{name}: {type(error).__name__}: {error}"[:160])
        return otherwise


def _step(state: State, evidence: Evidence, first: FirstFailed | None) -> int | None:
    if state in ("finished", "stopped") and evidence.is_newest and evidence.status is not None:
        return whole(evidence.status.step)
    beat, end = evidence.beats.get(0), evidence.end or {}
    known = (first.step if first else None, beat.step if beat else None, whole(end.get("last_step")))
    return next((step for step in known if step is not None), None)


def _to_repeat(state: State, evidence: Evidence, step: int | None, saved: Saved) -> int | None:
    if step is None or not evidence.is_newest or state not in _FAILED:
        return None
    return max(0, step - (saved.step or 0))
