"""Nested Python values as JSON and back, exactly: tuples, int keys, Counters, infinities, no pickle.

What JSON has is written as it is. Anything else is an object tagged with "$":

    (1, 2)            {"$": "tuple", "items": [1, 2]}
    {3: "a"}          {"$": "dict", "items": [[3, "a"]]}
    float("inf")      {"$": "float", "value": "inf"}
    a tensor          {"$": "tensor", "name": "optimizer.state.0.exp_avg"}      by the caller's `leaf`
"""

import base64
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from dist_trainer.errors import CorruptCheckpoint, UsageError

TAG = "$"
# what a reader of a hostile document meets: a missing key, a number that is none or too large, too deep a tree
NOT_AS_WRITTEN = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)
Tagged = dict[str, Any]
_SEQUENCES: dict[str, type[Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MAPPINGS: dict[str, type[Any]] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_TAGS: dict[type[Any], str] = {kind: tag for tag, kind in (_SEQUENCES | _MAPPINGS).items()}
_ACCEPTED = (
    "None, bool, int, float, complex, str, bytes, list, tuple, set, dict, Counter, tensor, NumPy array"
)


def pack(value: Any, *, path: str, leaf: Callable[[Any, str], Tagged | None] | None = None) -> Any:
    """A copy of `value` that `json.dumps` takes; `leaf(value, path)` may make tagged objects of other values.

    Raises UsageError naming the key of a value that cannot be kept. Types must match exactly: a subclass
    would come back as something else.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if value - value == 0 else {TAG: "float", "value": repr(value)}
    if kind is list:
        return [pack(item, path=f"{path}.{index}", leaf=leaf) for index, item in enumerate(value)]
    if kind in _MAPPINGS.values():
        return _pack_mapping(value, path, leaf)
    if kind in _TAGS:
        items = [pack(item, path=f"{path}.{index}", leaf=leaf) for index, item in enumerate(value)]
        return {TAG: _TAGS[kind], "items": items}
    if kind is complex:
        parts = [pack(part, path=path) for part in (value.real, value.imag)]
        return {TAG: "complex", "parts": parts}
    if kind is bytes:
        return {TAG: "bytes", "base64": base64.b64encode(value).decode()}
    tagged = leaf(value, path) if leaf else None
    if tagged is None:
        raise UsageError(
            f"{path}: a {kind.__module__}.{kind.__qualname__} cannot be saved in a checkpoint; "
            f"accepted are {_ACCEPTED}, nested as you like"
        )
    return tagged


def _pack_mapping(
    value: Mapping[Any, Any], path: str, leaf: Callable[[Any, str], Tagged | None] | None
) -> Any:
    pairs = [
        (pack(key, path=f"{path} (a key)"), pack(item, path=f"{path}.{key}", leaf=leaf))
        for key, item in value.items()
    ]
    if type(value) is dict and all(type(key) is str and not key.startswith(TAG) for key in value):
        return dict(pairs)
    return {TAG: _TAGS[type(value)], "items": [list(pair) for pair in pairs]}


def unpack(document: Any, *, leaf: Callable[[Tagged], Any] | None = None) -> Any:
    """What `pack` was given. Raises CorruptCheckpoint where the document is not one of pack's."""
    try:
        return _unpack(document, leaf)
    except NOT_AS_WRITTEN as error:
        raise CorruptCheckpoint(f"not a packed value: {error!r}") from error


def _unpack(document: Any, leaf: Callable[[Tagged], Any] | None) -> Any:
    if isinstance(document, list):
        return [_unpack(item, leaf) for item in document]
    if not isinstance(document, dict):
        return document
    if TAG not in document:
        return {key: _unpack(item, leaf) for key, item in document.items()}
    tag = document[TAG]
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](_unpack(item, leaf) for item in document["items"])
    if tag in _MAPPINGS:
        pairs = [(_unpack(key, leaf), _unpack(item, leaf)) for key, item in document["items"]]
        return _MAPPINGS[tag](dict(pairs))
    if tag == "float":
        return float(document["value"])
    if tag == "complex":
        real, imaginary = (_unpack(part, leaf) for part in document["parts"])
        return complex(real, imaginary)
    if tag == "bytes":
        return base64.b64decode(document["base64"], validate=True)
    if leaf is None:
        raise ValueError(f"unknown tag {tag!r}")
    return leaf(document)
