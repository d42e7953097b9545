"""What differs between a run's configuration and the one it is asked to go on with."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dist_trainer.config.schema import Settings
from dist_trainer.config.yaml_rules import write_yaml

NOT_SET = object()
LENGTHS = ("train.epochs", "train.steps")
HARMLESS = (
    "tracking.*",
    "launch.*",
    "slurm.*",
    "data.num_workers",
    "data.eval_batch_size",
    "checkpoint.every_*",
    "checkpoint.keep_*",
    "checkpoint.max_staleness_minutes",
    "train.eval_every_*",
    "train.profile*",
    "train.early_stopping*",
)


@dataclass(frozen=True)
class Change:
    """One key with its values in the run and now; a harmless change leaves the run's numbers what they are.

    `old` or `new` is NOT_SET where only the other configuration has the key.
    """

    key: str
    old: Any
    new: Any
    harmless: bool

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.old)} -> {shown(self.new)}"


def changes(old: Settings, new: Settings) -> list[Change]:
    """Every key that differs, in the order of `new`. Lists are compared as a whole."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    keys = [*after, *(key for key in before if key not in after)]
    pairs = [(key, before.get(key, NOT_SET), after.get(key, NOT_SET)) for key in keys]
    return [Change(key, was, now, is_harmless(key, was, now)) for key, was, now in pairs if was != now]


def is_harmless(key: str, old: Any, new: Any) -> bool:
    """Whether a run may go on with this change without being asked."""
    if key in LENGTHS:
        return isinstance(old, int) and isinstance(new, int) and new > old
    return any(fnmatchcase(key, pattern) for pattern in HARMLESS)


def unaccepted(found: Collection[Change], allowed: Collection[str]) -> list[Change]:
    """The changes that are neither harmless nor among `allowed`: keys, or sections for all in them."""
    return [
        change
        for change in found
        if not change.harmless
        and not any(change.key == key or change.key.startswith(f"{key}.") for key in allowed)
    ]


def describe(found: Collection[Change]) -> str:
    """One line for each change: `  optimizer.lr: 0.1 -> 0.2`."""
    return "\n".join(f"  {change}" for change in found)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested dicts with its dotted key."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """A value as it stands in YAML."""
    if value is NOT_SET:
        return "(not set)"
    if isinstance(value, (dict, list)):
        return str(value)
    return write_yaml(value).removesuffix("...\n").strip()
