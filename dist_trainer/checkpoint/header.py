"""The safetensors header: which tensors a file holds and where, written by hand and read within limits.

    8 bytes       little-endian length of the header
    header        JSON: {"__metadata__": {str: str}, NAME: {"dtype", "shape", "data_offsets": [start, end]}}
    data          the tensors, row-major, without gaps

Format: https://github.com/huggingface/safetensors. Needs no torch, so a tool can look into a file cheaply.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_trainer.checkpoint.structure import NOT_AS_WRITTEN
from dist_trainer.errors import CorruptCheckpoint, UsageError

HEADER_LIMIT = 16 << 20  # of a hundred thousand tensors; to parse it takes ten times its size
METADATA = "__metadata__"
ITEM_SIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Entry:
    """One tensor in the file; `start` and `end` are byte offsets into the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file by name, in the order in which they were saved."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def write_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file, padded with spaces to a multiple of 8. UsageError: more than is ever read back."""
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, entry in entries.items():
        document[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise UsageError(
            f"{len(entries)} tensors are more than a checkpoint holds: their names and shapes take {len(text)} "
            f"bytes, and {HEADER_LIMIT} are read"
        )
    return len(text).to_bytes(8, "little") + text


def read_header(start: bytes | bytearray | memoryview, file_size: int) -> Header:
    """Parse the header from the file's first bytes (all of the header must be there).

    Raises CorruptCheckpoint where anything is not as the format says: before a byte is allocated for it,
    each declared size must equal the real one.
    """
    length = int.from_bytes(bytes(start[:8]), "little")
    if file_size < 8 or length > min(HEADER_LIMIT, file_size - 8) or len(start) < 8 + length:
        raise CorruptCheckpoint(f"not a safetensors file: a header of {length} bytes in {file_size}")
    try:
        document = json.loads(bytes(start[8 : 8 + length]))
        metadata = {str(key): _text(value) for key, value in document.pop(METADATA, {}).items()}
        entries = {name: _entry(value) for name, value in document.items()}
    except NOT_AS_WRITTEN as error:
        raise CorruptCheckpoint(f"not a safetensors header: {error!r}") from error
    _check_without_gaps(entries, file_size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("metadata must be text")
    return value


def _entry(value: Mapping[str, Any]) -> Entry:
    shape, (start, end) = tuple(value["shape"]), value["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise ValueError("sizes must be whole numbers from 0 on")
    if end - start != ITEM_SIZE[value["dtype"]] * math.prod(shape):
        raise ValueError(f"{end - start} bytes for {value['dtype']} of shape {list(shape)}")
    return Entry(value["dtype"], shape, start, end)


def _check_without_gaps(entries: Mapping[str, Entry], data_size: int) -> None:
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise CorruptCheckpoint(f"not a safetensors file: a gap or an overlap at byte {position}")
        position = entry.end
    if position != data_size:
        raise CorruptCheckpoint(f"not a safetensors file: {position} bytes declared, {data_size} there")
