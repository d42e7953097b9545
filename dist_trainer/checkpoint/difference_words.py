"""A difference between two checkpoints as rows for people and as JSON for programs."""

import json
from collections.abc import Iterator
from typing import Any

from dist_trainer.adapters.files import plain_number
from dist_trainer.checkpoint.difference import Changed, Difference, Stored, is_missing
from dist_trainer.checkpoint.locate import Located

_SHOWN = 40  # rows of each kind
_LONGEST = 24  # of a value


def rows_of(difference: Difference) -> Iterator[list[dict[str, str]]]:
    """Tables: what only one has, tensors of other shapes or types, other numbers, other values."""
    yield _cut([{"only in": side, "tensor": name} for side, name in _alone(difference)])
    other = [each for each in difference.changed if _kind(each.a) != _kind(each.b)]
    yield _cut([{"tensor": each.name, "a": _kind(each.a), "b": _kind(each.b)} for each in other])
    yield _cut(
        [
            {
                "tensor": each.name,
                "differ": f"{100 * each.share:.3g}%",
                "max abs": f"{each.max_abs:.2e}",
                "max rel": f"{each.max_rel:.2e}",
            }
            for each in difference.changed
            if each.share is not None
        ]
    )
    yield _cut([{"value": path, "a": _text(a), "b": _text(b)} for path, (a, b) in difference.values.items()])


def _alone(difference: Difference) -> Iterator[tuple[str, str]]:
    yield from (("a", name) for name in difference.only_in_a)
    yield from (("b", name) for name in difference.only_in_b)


def _cut(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    if len(rows) <= _SHOWN:
        return rows
    more = dict.fromkeys(rows[0], "")
    more[list(more)[-1]] = f"{len(rows) - _SHOWN} more: --json has them all"
    return [*rows[:_SHOWN], more]


def _kind(stored: Stored) -> str:
    return f"{stored.dtype} {'x'.join(map(str, stored.shape)) or 'scalar'}"


def _text(value: Any) -> str:
    if is_missing(value):
        return "(none)"
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def as_json_document(a: Located, b: Located, difference: Difference) -> dict[str, Any]:
    """All of it. A value that one of the two lacks has no key for it; infinities are the text Infinity."""
    return {
        "a": {"folder": a.where, "step": a.checkpoint.step},
        "b": {"folder": b.where, "step": b.checkpoint.step},
        "same": difference.is_none,
        "tensors": {
            "same": difference.num_same,
            "only_in_a": difference.only_in_a,
            "only_in_b": difference.only_in_b,
            "different": [_changed(each) for each in difference.changed],
        },
        "values": [
            {
                "path": path,
                **{side: value for side, value in zip("ab", pair, strict=True) if not is_missing(value)},
            }
            for path, pair in difference.values.items()
        ],
    }


def _changed(each: Changed) -> dict[str, Any]:
    sides = {
        side: {"dtype": stored.dtype, "shape": list(stored.shape)}
        for side, stored in (("a", each.a), ("b", each.b))
    }
    numbers = {"share": each.share, "max_abs": each.max_abs, "max_rel": each.max_rel}
    known = {name: plain_number(value) for name, value in numbers.items() if value is not None}
    return {"name": each.name, **sides, **known}
