"""What a run has saved: its newest committed checkpoint, by the store or, where that is silent, the journal."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.manifest import COMMIT, QUARANTINE, Checkpoint, parse_name
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.diagnose.evidence import UNREADABLE, Evidence
from dist_trainer.tracking.journal import last_saved_step

_STORE_MAY_TAKE_S = 5.0
Listed = list[tuple[Checkpoint, bool]]


@dataclass(frozen=True)
class Saved:
    """The checkpoints there are; `step` is None where there is none."""

    step: int | None = None
    name: str = ""
    where: str = ""
    committed: int = 0
    damaged: int = 0  # were found damaged, and are kept in quarantine
    problem: str = ""  # why this is the journal's word and not the store's


def look(evidence: Evidence) -> Saved:
    """What the next start would go on from, if every byte of it is good: that is not looked at here."""
    section = evidence.config.get("checkpoint")
    settings: dict[str, Any] = section if isinstance(section, dict) else {}
    try:
        config = CheckpointConfig.model_validate(settings)
        store = open_store(evidence.run, config, report=lambda message: None)
        list_all = partial(_committed, store.storage)
        found = list_all() if store.storage.is_local else _within(_STORE_MAY_TAKE_S, list_all)
        good = sorted(checkpoint for checkpoint, damaged in found if not damaged)
        newest = good[-1] if good else None
        return Saved(
            step=newest.step if newest else None,
            name=newest.name if newest else "",
            where=store.storage.url,
            committed=len(good),
            damaged=len(found) - len(good),
        )
    except UNREADABLE as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        return Saved(step=_by_journal(evidence), problem=f"the checkpoints cannot be listed: {said[:160]}")


def _committed(storage: Storage) -> Listed:
    """Each committed checkpoint, and whether it is in quarantine; names alone are read."""
    known = [checkpoint for checkpoint in map(parse_name, storage.list()) if checkpoint is not None]
    named = [(checkpoint, storage.list(checkpoint.name)) for checkpoint in known]
    return [(checkpoint, QUARANTINE in names) for checkpoint, names in named if COMMIT in names]


def _by_journal(evidence: Evidence) -> int | None:
    try:
        return last_saved_step(evidence.run.journal_path(0))
    except UNREADABLE:
        return None


def _within(seconds: float, call: Callable[[], Listed]) -> Listed:
    """What `call` gives; TimeoutError where a store that is away takes longer: nobody waits for that here."""
    answer: list[Listed] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="explain-store", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answer:
        raise TimeoutError(f"the store did not answer within {seconds:g} s")
    return answer[0]
