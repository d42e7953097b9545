"""What differs between two checkpoints, tensor by tensor and value by value, a part of two tensors in memory at once.

Elements differ where their bytes do; of two types, where their values do. The largest difference is
max|a - b|, and the relative one max(|a - b| / max(|a|, |b|)); both are infinite where one of the two is no number.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_trainer.checkpoint.header import Entry, read_header
from dist_trainer.checkpoint.locate import Located
from dist_trainer.checkpoint.state import MODEL, TENSORS, VALUES
from dist_trainer.checkpoint.structure import TAG
from dist_trainer.checkpoint.tensors import NOTES, stored_dtype

_PART = 1 << 20  # elements at a time
_UNORDERED = ("set", "frozenset")
_IN_TENSORS = ("tensor", "array", "number")  # values whose bytes are in training.safetensors
_MISSING = object()


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of a checkpoint."""

    located: Located
    path: str
    entry: Entry
    data_start: int
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return self.entry.shape

    def read(self, first: int, last: int) -> Tensor:
        """Elements in [first, last), row by row."""
        dtype = stored_dtype(self.entry.dtype)
        start = self.data_start + self.entry.start
        part = _part_of(
            self.located, self.path, start + first * dtype.itemsize, start + last * dtype.itemsize
        )
        return torch.frombuffer(part, dtype=dtype)


@dataclass(frozen=True)
class Changed:
    """A tensor that differs; without numbers where the shapes do."""

    name: str
    a: Stored
    b: Stored
    share: float | None = None  # of the elements
    max_abs: float | None = None
    max_rel: float | None = None


@dataclass(frozen=True)
class Difference:
    """All that differs between two checkpoints; names of tensors begin with model. or training."""

    only_in_a: list[str]
    only_in_b: list[str]
    changed: list[Changed]
    num_same: int
    values: dict[str, tuple[Any, Any]]  # by dotted path; `missing` where one has none

    @property
    def is_none(self) -> bool:
        """Whether the two are the same."""
        return not (self.only_in_a or self.only_in_b or self.changed or self.values)


def is_missing(value: Any) -> bool:
    """Whether one of the two checkpoints does not have the value."""
    return value is _MISSING


def compare(a: Located, b: Located) -> Difference:
    """Verify both, then compare them. Raises NoUsableCheckpoint where one is damaged."""
    for each in (a, b):
        each.verify()
    in_a, in_b = _tensors(a), _tensors(b)
    both = [name for name in in_a if name in in_b]
    changed = [found for name in both if (found := _compared(name, in_a[name], in_b[name]))]
    return Difference(
        [name for name in in_a if name not in in_b],
        [name for name in in_b if name not in in_a],
        changed,
        len(both) - len(changed),
        _different_values(_values(a), _values(b)),
    )


def _tensors(located: Located) -> dict[str, Stored]:
    """All tensors; tied ones under each of their names."""
    found = {}
    for file in (MODEL, TENSORS):
        path = f"{located.checkpoint.name}/{file}"
        storage = located.reader.storage
        if not storage.exists(path):
            continue
        head = _part_of(located, path, 0, 8)
        size = storage.size(path)
        head += _part_of(located, path, 8, min(size, 8 + int.from_bytes(head, "little")))
        header = read_header(head, size)
        notes = json.loads(header.metadata.get(NOTES, "{}"))
        own = {
            name: Stored(
                located, path, entry, header.data_start, notes.get("dtypes", {}).get(name, entry.dtype)
            )
            for name, entry in header.entries.items()
        }
        own |= {name: own[known] for name, known in notes.get("aliases", {}).items()}
        prefix = "model." if file == MODEL else ""  # the others' names begin with training. or model.
        found.update({f"{prefix}{name}": stored for name, stored in own.items()})
    return found


def _part_of(located: Located, path: str, start: int, end: int) -> bytearray:
    """Bytes of a file; a block of its stream is valid until the next one only."""
    content = bytearray()
    for block in located.reader.storage.stream(path, start, end):
        content += block
    return content


def _compared(name: str, a: Stored, b: Stored) -> Changed | None:
    if a.shape != b.shape:
        return Changed(name, a, b)
    count, differing, max_abs, max_rel = math.prod(a.shape), 0, 0.0, 0.0
    for first in range(0, count, _PART):
        last = min(first + _PART, count)
        x, y = a.read(first, last), b.read(first, last)
        differ = _differ(x, y)
        if bool(differ.any()):
            absolute, relative = _largest(_wide(x[differ]), _wide(y[differ]))
            differing += int(differ.sum())
            max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
    if not differing and a.dtype == b.dtype:
        return None
    return Changed(name, a, b, differing / max(1, count), max_abs, max_rel)


def _differ(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype == y.dtype:
        size = x.dtype.itemsize
        return (x.view(torch.uint8).view(-1, size) != y.view(torch.uint8).view(-1, size)).any(dim=1)
    wide_x, wide_y = _wide(x), _wide(y)
    return (wide_x != wide_y) & ~(wide_x.isnan() & wide_y.isnan())


def _wide(values: Tensor) -> Tensor:
    if values.is_complex():
        return values.to(torch.complex128)
    return (values.float() if values.dtype.itemsize == 1 and values.is_floating_point() else values).double()


def _largest(x: Tensor, y: Tensor) -> tuple[float, float]:
    absolute = (x - y).abs()
    absolute[(x == y) | (x.isnan() & y.isnan())] = 0.0  # as of two infinities, or zeros of two signs
    relative = absolute / torch.maximum(x.abs(), y.abs())
    relative[absolute == 0] = 0.0
    return tuple(float(each.nan_to_num(nan=math.inf, posinf=math.inf).max()) for each in (absolute, relative))  # type: ignore[return-value]


def _values(located: Located) -> dict[str, Any]:
    path = f"{located.checkpoint.name}/{VALUES}"
    storage = located.reader.storage
    if not storage.exists(path):
        return {}
    document = json.loads(bytes(storage.read(path)))
    return {
        name: value
        for part in ("training", "model_extra")
        for name, value in _leaves(document.get(part), part)
    }


def _leaves(packed: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The plain values of a document in structure.py's form, each with its dotted path."""
    children: Mapping[Any, Any] | None = None
    if isinstance(packed, list):
        children = dict(enumerate(packed))
    elif isinstance(packed, dict) and TAG not in packed:
        children = packed
    elif isinstance(packed, dict) and "items" in packed:
        items = packed["items"]
        if packed[TAG] in _UNORDERED:  # saved in the order of hashes, which another process has otherwise
            items = sorted(items, key=json.dumps)
        is_mapping = packed[TAG] in ("dict", "ordered", "counter")
        children = {str(key): value for key, value in items} if is_mapping else dict(enumerate(items))
    if children:
        for key, value in children.items():
            yield from _leaves(value, f"{path}.{key}")
    elif not (isinstance(packed, dict) and packed.get(TAG) in _IN_TENSORS):
        yield path, packed.get("value", packed) if isinstance(packed, dict) else packed


def _different_values(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {path: (a.get(path, _MISSING), b.get(path, _MISSING)) for path in {**a, **b}}
    return {path: (x, y) for path, (x, y) in pairs.items() if type(x) is not type(y) or x != y}
