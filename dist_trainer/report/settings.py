"""What runs are configured to do, without secrets, and in what they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_NOT_SET = "not set"
_ALWAYS_OTHER = ("name",)


@dataclass(frozen=True)
class Difference:
    """A dotted key, and each run's value as it is written in its config.yaml."""

    key: str
    values: Sequence[str]


def differences(settings: Sequence[Mapping[str, str]]) -> list[Difference]:
    """The keys whose values are not the same in all of the runs, by name."""
    keys = sorted({key for each in settings for key in each} - {*_ALWAYS_OTHER})
    rows = [Difference(key, [each.get(key, _NOT_SET) for each in settings]) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]
