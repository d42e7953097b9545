"""Named tensors as one safetensors file and back, exactly.

Any safetensors reader understands the file. What the format lacks is noted in its metadata, under
"dist_trainer", as JSON: `aliases` (a tied tensor is stored once), `strides` (channels_last and other dense
layouts), `dtypes` (types that are stored as another one, such as complex128).
"""

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dist_trainer.adapters.storage import Buffer
from dist_trainer.checkpoint.header import METADATA, Entry, Header, read_header, write_header
from dist_trainer.checkpoint.structure import NOT_AS_WRITTEN
from dist_trainer.errors import CorruptCheckpoint, UsageError

NOTES = "dist_trainer"
_STORED = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
# stored as another type with a last dimension more: (name of that type, its size)
_CARRIED = {
    torch.complex128: ("F64", 2),
    torch.float8_e8m0fnu: ("U8", 1),
}
_READ = {name: dtype for dtype, name in _STORED.items()}
_READ_CARRIED = {str(dtype).removeprefix("torch."): dtype for dtype in _CARRIED}


def stored_dtype(name: str) -> torch.dtype:
    """The type that safetensors calls by this name."""
    return _READ[name]


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors exactly if they are the same elements in the same memory (tied)."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether these strides reach each place in a block of memory exactly once."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def has_own_layout(tensor: Tensor) -> bool:
    """Whether it is laid out densely, but not row by row. A convolution of one channel may be channels_last
    and contiguous at once: only the strides tell."""
    rows = tuple(math.prod(tensor.shape[index + 1 :]) for index in range(tensor.dim()))
    return tensor.numel() > 0 and tensor.stride() != rows and is_dense(tensor.shape, tensor.stride())


def check_storable(name: str, tensor: Tensor) -> None:
    """UsageError where the tensor cannot be written: sparse, quantized, meta, or of an unknown type."""
    known = tensor.dtype in _STORED or tensor.dtype in _CARRIED
    plain = tensor.layout == torch.strided and type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not known or not plain or tensor.device.type == "meta" or name == METADATA:
        raise UsageError(
            f"{name}: a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device} "
            f"cannot be saved in a checkpoint; make it a dense tensor of a plain type"
        )


def to_buffers(tensors: Mapping[str, Tensor]) -> list[Buffer]:
    """The file as a list of buffers: its header, then each tensor's own memory, uncopied where contiguous.

    The tensors must stay as they are until the buffers have been written.
    """
    notes: dict[str, dict[str, Any]] = {"aliases": {}, "strides": {}, "dtypes": {}}
    stored: dict[str, Tensor] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        check_storable(name, tensor)
        if (known := first.setdefault(identity(tensor), name)) != name:
            notes["aliases"][name] = known
            continue
        stored[name] = tensor
        if tensor.dtype in _CARRIED:
            notes["dtypes"][name] = str(tensor.dtype).removeprefix("torch.")
        if has_own_layout(tensor):
            notes["strides"][name] = list(tensor.stride())
    # wide types first keeps each one aligned to its size, as other writers of the format do
    names = sorted(stored, key=lambda name: -stored[name].element_size())
    places = _places((name, stored[name]) for name in names)
    notes = {kind: note for kind, note in notes.items() if note}
    metadata = {"format": "pt", **({NOTES: json.dumps(notes)} if notes else {})}
    header = write_header({name: places[name] for name in stored}, metadata)
    return [header, *(_bytes(stored[name]) for name in names)]


def _places(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Entry]:
    places, position = {}, 0
    for name, tensor in tensors:
        dtype, shape = _STORED.get(tensor.dtype, ""), tuple(tensor.shape)
        if tensor.dtype in _CARRIED:
            dtype, width = _CARRIED[tensor.dtype]
            shape = (*shape, width)
        end = position + tensor.numel() * tensor.element_size()
        places[name] = Entry(dtype, shape, position, end)
        position = end
    return places


def _bytes(tensor: Tensor) -> Buffer:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return _memory(plain.reshape(-1))


def _memory(flat: Tensor) -> memoryview:
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def from_buffer(data: Buffer, *, in_place: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own except for tied ones, in the order they were saved.

    With `in_place` they lie in `data` where they can: enough to be copied from, and half the time. Raises
    CorruptCheckpoint where the file is not what `to_buffers` or another safetensors writer makes.
    """
    header = read_header(data, len(data))
    try:
        notes = json.loads(header.metadata.get(NOTES, "{}"))
        return _tensors(header, notes, memoryview(data)[header.data_start :], in_place)
    except NOT_AS_WRITTEN as error:
        raise CorruptCheckpoint(f"not a readable safetensors file: {error!r}") from error


def _tensors(
    header: Header, notes: Mapping[str, Mapping[str, Any]], data: memoryview, in_place: bool
) -> dict[str, Tensor]:
    dtypes, strides = notes.get("dtypes", {}), notes.get("strides", {})
    tensors = {}
    for name, entry in header.entries.items():
        shape, dtype = entry.shape, _READ[entry.dtype]
        if name in dtypes:
            shape, dtype = shape[:-1], _READ_CARRIED[dtypes[name]]
        if math.prod(shape) * dtype.itemsize != entry.end - entry.start:
            raise ValueError(f"{name}: {dtype} of shape {shape} is not {entry.end - entry.start} bytes")
        flat = _flat(data[entry.start : entry.end], dtype, in_place)
        tensors[name] = _with_strides(flat.view(shape), strides.get(name))
    for name, known in notes.get("aliases", {}).items():
        tensors[name] = tensors[known]
    return tensors


def _flat(data: memoryview, dtype: torch.dtype, in_place: bool) -> Tensor:
    if not data.nbytes:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that cannot be written to: it is not
        there = torch.frombuffer(data, dtype=torch.uint8)
    if in_place and not data.readonly and there.data_ptr() % dtype.itemsize == 0:
        return there.view(dtype)
    flat = torch.empty(data.nbytes // dtype.itemsize, dtype=dtype)
    flat.view(torch.uint8).copy_(there)
    return flat


def _with_strides(tensor: Tensor, strides: Sequence[int] | None) -> Tensor:
    if strides is None:
        return tensor
    if not is_dense(tensor.shape, strides):
        raise ValueError(f"strides {strides} for shape {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), tuple(strides), dtype=tensor.dtype).copy_(tensor)
