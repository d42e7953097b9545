"""The names that a misspelt one probably meant, or those that there are, worded for the end of a message."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_FEW = 5


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three of `known` that look like `name`, the likeliest first; letter case does not count."""
    by_lower: dict[str, str] = {}
    for other in known:
        by_lower.setdefault(other.lower(), other)
    return [by_lower[match] for match in get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.6)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing where no name is near."""
    names = near_names(name, known)
    return f"; did you mean {listed(names)}?" if names else ""


def listed(names: Iterable[str], last: str = "or") -> str:
    """`a, b or c`."""
    *most, final = list(names) or ["nothing"]
    return f"{', '.join(most)} {last} {final}" if most else final


def first_few(names: Sequence[str]) -> str:
    """`a, b, c, d, e, and 2 more`."""
    more = [f"and {len(names) - _FEW} more"] if len(names) > _FEW else []
    return ", ".join([*names[:_FEW], *more])
