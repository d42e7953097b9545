"""Clears a run's checkpoints away that are not worth keeping, after every one that stays was read back whole."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dist_trainer.checkpoint.manifest import COMMIT, QUARANTINE, Checkpoint, parse_name
from dist_trainer.checkpoint.retention import best, kept
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint, StorageError

SUPERSEDED, UNCOMMITTED, QUARANTINED = "not kept", "never committed", "in quarantine"


@dataclass(frozen=True)
class Removal:
    """A folder that goes."""

    checkpoint: Checkpoint
    why: str
    size_bytes: int


@dataclass(frozen=True)
class Pruning:
    """What stays, each with why, and what goes. `damaged` ones were found so now: they stay, set aside."""

    kept: dict[Checkpoint, list[str]]
    removals: list[Removal]
    damaged: dict[Checkpoint, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """All that goes."""
        return sum(removal.size_bytes for removal in self.removals)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {
            "kept": [{"name": each.name, "step": each.step, "why": why} for each, why in self.kept.items()],
            "removed": [
                {
                    "name": each.checkpoint.name,
                    "step": each.checkpoint.step,
                    "why": each.why,
                    "bytes": each.size_bytes,
                }
                for each in self.removals
            ],
            "damaged": [{"name": each.name, "problem": problem} for each, problem in self.damaged.items()],
            "bytes": self.size_bytes,
        }


def plan_pruning(
    store: CheckpointStore,
    config: CheckpointConfig,
    *,
    quarantined: bool,
    proven: set[Checkpoint] | None = None,
) -> Pruning:
    """What `config` keeps, every byte of it verified, and what goes: also remains that were never committed.

    A damaged one does not count as kept, and the next good one stays in its place. Those in `proven` are not read
    again, and those that are read are added. Raises NoUsableCheckpoint where there are checkpoints and none is
    good: then nothing is to go.
    """
    proven = set() if proven is None else proven
    committed = store.committed()
    good = [checkpoint for checkpoint, is_apart in committed if not is_apart]
    damaged = dict(_without_manifest(store, good))
    good = [checkpoint for checkpoint in good if checkpoint not in damaged]
    while bad := _first_bad(store, [each for each in good if each.name in kept(good, config)], proven):
        good.remove(bad[0])
        if bad[1]:
            damaged[bad[0]] = bad[1]
    if committed and not good:
        raise NoUsableCheckpoint(
            f"{store.storage.url}: none of {len(committed)} checkpoints is whole, so none is removed; `dist-trainer "
            "checkpoint verify` says what is wrong with each"
        )
    names = kept(good, config)
    removals = [Removal(each, SUPERSEDED, _size(store, each)) for each in good if each.name not in names]
    apart = [checkpoint for checkpoint, is_apart in committed if is_apart] if quarantined else []
    removals += [Removal(each, QUARANTINED, _size(store, each)) for each in apart]
    remains = _remains(store, below=good[0], quarantined=quarantined) if good else []
    removals += [Removal(each, UNCOMMITTED, _size(store, each)) for each in remains]
    stays = {each: _reasons(each, good, config) for each in good if each.name in names}
    return Pruning(stays, removals, damaged)


def carry_out(store: CheckpointStore, pruning: Pruning) -> dict[str, str]:
    """Set the damaged ones aside, and remove what goes, the oldest first; by name what was in the way of some."""
    for checkpoint, problem in pruning.damaged.items():
        store.set_aside(checkpoint, CorruptCheckpoint(problem))
    failed = {}
    for removal in sorted(pruning.removals, key=lambda removal: removal.checkpoint):
        try:
            store.remove(removal.checkpoint)
        except StorageError as error:
            failed[removal.checkpoint.name] = str(error)
    return failed


def _without_manifest(
    store: CheckpointStore, checkpoints: Sequence[Checkpoint]
) -> Iterator[tuple[Checkpoint, str]]:
    """Those whose manifest cannot be read, of which nothing is known: neither how good they are, nor their files."""
    for checkpoint in checkpoints:
        if not checkpoint.info:  # as it is too where nothing was noted
            found = _first_bad(store, [checkpoint], set())
            if found and found[1]:
                yield checkpoint, found[1]


def _first_bad(
    store: CheckpointStore, checkpoints: Sequence[Checkpoint], proven: set[Checkpoint]
) -> tuple[Checkpoint, str] | None:
    """The first that is damaged, and how; "" of one that is gone, as a run that trains removes its old ones."""
    for checkpoint in checkpoints:
        if checkpoint in proven:
            continue
        try:
            store.verify(checkpoint)
        except CorruptCheckpoint as error:
            is_there = store.storage.exists(f"{checkpoint.name}/{COMMIT}")
            return checkpoint, str(error) if is_there else ""
        proven.add(checkpoint)
    return None


def _remains(store: CheckpointStore, *, below: Checkpoint, quarantined: bool) -> list[Checkpoint]:
    """What has no marker and is older than a committed one: a newer one may be being written, by whomever."""
    markers = (COMMIT,) if quarantined else (COMMIT, QUARANTINE)
    found = []
    for checkpoint in filter(None, map(parse_name, store.storage.list())):
        name = checkpoint.name
        # a listing may lag behind the marker: what goes for having none is asked itself
        if checkpoint < below and not any(store.storage.exists(f"{name}/{marker}") for marker in markers):
            found.append(checkpoint)
    return found


def _size(store: CheckpointStore, checkpoint: Checkpoint) -> int:
    size, name = 0, checkpoint.name
    for file in store.storage.list(name):
        with suppress(FileNotFoundError):  # no plain file: it goes all the same
            size += store.storage.size(f"{name}/{file}")
    return size


def _reasons(checkpoint: Checkpoint, good: Sequence[Checkpoint], config: CheckpointConfig) -> list[str]:
    place, every = good.index(checkpoint), config.keep_every_steps
    reasons = []
    if place < config.keep_last:
        reasons.append("the newest" if config.keep_last == 1 else f"of the last {config.keep_last}")
    if config.keep_best and best(good, config.keep_best) == checkpoint:
        reasons.append(f"best {config.keep_best.metric}")
    if every and checkpoint.step % every == 0:
        reasons.append(f"a multiple of {every} steps")
    return reasons
