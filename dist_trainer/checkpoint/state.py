"""What a checkpoint holds: the model's tensors, and the rest of training as nested values, as three files.

model.safetensors      the model's state dict; any safetensors reader loads it
training.safetensors   every tensor of optimizer, EMA, metrics, ..., named by its path
training.json          {"format": 1, "training": ..., "model_extra": ...} in structure.py's form
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_trainer.adapters.storage import Buffer
from dist_trainer.checkpoint.structure import NOT_AS_WRITTEN, TAG, Tagged, pack, unpack
from dist_trainer.checkpoint.tensors import check_storable, from_buffer, to_buffers
from dist_trainer.checkpoint.weights import load_weights
from dist_trainer.errors import CorruptCheckpoint, UsageError

__all__ = ["Captured", "State", "capture", "decode", "encode", "load_weights", "serialize"]

MODEL, TENSORS, VALUES = "model.safetensors", "training.safetensors", "training.json"
FORMAT = 1
VALUES_LIMIT = 16 << 20
_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


@dataclass(frozen=True)
class State:
    """All of a run at one step: the model's `state_dict()`, and any nesting of what structure.py accepts."""

    model: Mapping[str, Any]
    training: Any = None


@dataclass(frozen=True)
class Captured:
    """A state taken apart: tensors by name (still the training's own memory), all else copied."""

    model: dict[str, Tensor] = field(default_factory=dict)
    training: dict[str, Tensor] = field(default_factory=dict)
    values: Any = None


def capture(state: State) -> Captured:
    """Separate tensors from values. Raises UsageError naming the key of what cannot be saved."""
    model = {name: value.detach() for name, value in state.model.items() if isinstance(value, Tensor)}
    for name, tensor in model.items():
        check_storable(name, tensor)
    tensors: dict[str, Tensor] = {}
    extra = {name: value for name, value in state.model.items() if not isinstance(value, Tensor)}
    values = {
        "format": FORMAT,
        "training": _pack(state.training, "training", tensors),
        "model_extra": _pack(extra, "model", tensors),
    }
    return Captured(model, tensors, values)


def serialize(captured: Captured) -> dict[str, list[Buffer]]:
    """The three files, as lists of buffers that share the tensors' memory."""
    values = json.dumps(captured.values, allow_nan=False, separators=(",", ":")).encode()
    if len(values) > VALUES_LIMIT:
        raise UsageError(
            f"the state of training without its tensors is {len(values)} bytes, of which a checkpoint holds "
            f"{VALUES_LIMIT}; keep what is large in it as tensors"
        )
    return {MODEL: to_buffers(captured.model), TENSORS: to_buffers(captured.training), VALUES: [values]}


def encode(model: Mapping[str, Any], training: Any = None) -> dict[str, list[Buffer]]:
    """The files of a checkpoint of this state; `b"".join(buffers)` is a file's content."""
    return serialize(capture(State(model, training)))


def decode(files: Mapping[str, Buffer]) -> tuple[dict[str, Any], Any]:
    """The model's state dict, to be loaded into a model, and the training values. Raises CorruptCheckpoint.

    The model's tensors lie in the file's own buffer: a model copies them. The others have memory of their own,
    aligned as torch does it, since an optimizer may go on with them as they are.
    """
    missing = [name for name in (MODEL, TENSORS, VALUES) if name not in files]
    if missing:
        raise CorruptCheckpoint(f"not a checkpoint of a training state: {', '.join(missing)} missing")
    if len(files[VALUES]) > VALUES_LIMIT:
        raise CorruptCheckpoint(f"{VALUES}: larger than {VALUES_LIMIT} bytes")
    try:
        values = json.loads(bytes(files[VALUES]))
        version, packed, packed_extra = (values[key] for key in ("format", "training", "model_extra"))
    except NOT_AS_WRITTEN as error:
        raise CorruptCheckpoint(f"{VALUES}: not readable: {error!r}") from error
    if version != FORMAT:
        raise CorruptCheckpoint(f"{VALUES}: format {version!r}, this version reads {FORMAT}")
    tensors = from_buffer(files[TENSORS])

    def leaf(tagged: Tagged) -> Any:
        return _unpack_leaf(tagged, tensors)

    extra = unpack(packed_extra, leaf=leaf)
    if not isinstance(extra, dict):
        raise CorruptCheckpoint(f"{VALUES}: model_extra is a {type(extra).__name__}, not names and values")
    return {**from_buffer(files[MODEL], in_place=True), **extra}, unpack(packed, leaf=leaf)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    def leaf(value: Any, path: str) -> Tagged | None:
        if isinstance(value, Tensor):
            return {TAG: "tensor", "name": _put(value.detach(), path, tensors)}
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufc":
            tag = "array" if isinstance(value, np.ndarray) else "number"
            return {TAG: tag, "name": _put(torch.from_numpy(np.array(value)), path, tensors)}
        if type(value) is torch.Size:
            return {TAG: "size", "items": list(value)}
        if type(value) in (torch.dtype, torch.device):
            return {TAG: type(value).__name__, "value": str(value).removeprefix("torch.")}
        return None

    return pack(value, path=path, leaf=leaf)


def _put(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    check_storable(path, tensor)
    name, number = path, 1
    while name in tensors:  # a key "0" beside a key 0
        number += 1
        name = f"{path}#{number}"
    tensors[name] = tensor
    return name


def _unpack_leaf(tagged: Tagged, tensors: Mapping[str, Tensor]) -> Any:
    match tagged[TAG]:
        case "tensor":
            return tensors[tagged["name"]]
        case "array":
            return tensors[tagged["name"]].numpy()
        case "number":
            return tensors[tagged["name"]].numpy()[()]
        case "size":
            return torch.Size(tagged["items"])
        case "dtype":
            return _DTYPES[tagged["value"]]
        case "device":
            return torch.device(tagged["value"])
        case tag:
            raise ValueError(f"unknown tag {tag!r}")
