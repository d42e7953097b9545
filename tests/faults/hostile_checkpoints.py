"""A small checkpoint with everything that the format has, and what a hostile one could say instead."""

import json
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.inspection import inspect
from dist_trainer.checkpoint.manifest import (
    COMMIT,
    MANIFEST,
    MANIFEST_LIMIT,
    Checkpoint,
    Manifest,
    commit_record,
)
from dist_trainer.checkpoint.reader import digest_of
from dist_trainer.checkpoint.state import MODEL, TENSORS, VALUES, decode, encode
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.checkpoint.tensors import NOTES
from tests.faults.mutations import NASTY, change_bytes, change_json, change_tree

Files = dict[str, bytes]
HOSTILE_SHAPES: list[list[int]] = [
    *(
        [2**60],
        [2**40, 0],
        [0, 2**62, 2**62],
        [-1],
        [2**31, 2**31],
        [1] * 5000,
        [2**20, 2**20, 0],
        [2**28, 0],
    ),
]
HOSTILE_VALUES: list[Any] = [
    {"$": "size", "items": [2**60, -1]},
    {"$": "float", "value": 10**400},
    {"$": "complex", "parts": [10**400, "x"]},
    {"$": "device", "value": "nonsense:99999999999"},
    {"$": "dtype", "value": "float"},
    {"$": "set", "items": [[1], {}]},
    {"$": "bytes", "base64": "!"},
    {"$": "tensor", "name": ["x"]},
    {"$": "number", "name": "training.half"},
    {"$": "array", "name": "training.half"},
    {"$": "counter", "items": [[{"$": "tuple", "items": [[]]}, 1]]},
    {"$": {"$": "tuple"}},
    {"$": "pickle", "value": "gASVIgAAAA=="},
]


def files() -> Files:
    """A checkpoint's three files."""
    shared = torch.arange(6.0)
    model = {
        "weight": torch.arange(24.0).reshape(1, 4, 2, 3).to(memory_format=torch.channels_last),
        "tied": shared,
        "tied.again": shared,
        "wide": torch.ones(3, dtype=torch.complex128),
        "empty": torch.empty(0, 3),
        "extra": {"note": "text"},
    }
    training = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "betas": (0.9, 0.999),
        "milestones": Counter({3: 1}),
        "order": OrderedDict(a=1),
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}},
        "numbers": np.arange(3),
        "worst": float("inf"),
        "shape": torch.Size([1, 2]),
        "type": torch.float16,
        "device": torch.device("cpu"),
        "seen": {1, 2},
        "raw": b"abc",
    }
    return {name: b"".join(map(bytes, parts)) for name, parts in encode(model, training).items()}


def with_header(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A safetensors file with another header over the same data."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def store_of(folder: Path) -> CheckpointStore:
    return CheckpointStore(Storage(folder), fence=9, highest_fence=lambda: 9)


def manifest_of(content: Files) -> bytes:
    """A manifest by a committed checkpoint, digests and all."""
    records = {name: digest_of(data) for name, data in content.items()}
    return Manifest(records, {"metrics": {"val/loss": 0.5}, "wall": (1, 2)}).to_bytes(THE_ONE)


THE_ONE = Checkpoint(fence=1, step=10)


def put(folder: Path, content: Files, manifest: bytes, marker: bytes | None = None) -> None:
    """Put a checkpoint where a store finds it, with a marker that fits unless another is given."""
    place = folder / THE_ONE.name
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    for name, data in {**content, MANIFEST: manifest, COMMIT: marker or commit_record(manifest)}.items():
        (place / name).write_bytes(data)


def make_trial(folder: Path) -> Callable[[random.Random], None]:
    """One of the things that a hostile checkpoint could say, given to what reads it."""
    whole = files()
    manifest = manifest_of(whole)

    def read(**changed: bytes) -> None:
        content = {**whole, **{_NAMES[name]: data for name, data in changed.items()}}
        inspect(THE_ONE, content)
        decode(content)

    def one(draw: random.Random) -> None:
        name = draw.choice(["model", "tensors"])
        match draw.randrange(9):
            case 0 | 1 | 2:
                read(**{name: with_header(whole[_NAMES[name]], lambda header: change_header(header, draw))})
            case 3 | 4:
                read(values=json.dumps(change_values(json.loads(whole[VALUES]), draw)).encode())
            case 5:
                name = draw.choice(list(_NAMES))
                read(**{name: change_bytes(whole[_NAMES[name]], draw)})
            case 6 | 7:
                changed = change_json(manifest, draw)
                if len(changed) <= MANIFEST_LIMIT:  # else no store has it parsed
                    Manifest.parse(changed, THE_ONE)
            case _:
                in_a_store(draw)

    def in_a_store(draw: random.Random) -> None:
        if draw.random() < 0.5:
            put(folder, whole, manifest, change_json(commit_record(manifest), draw))
        else:
            put(folder, whole, change_json(manifest, draw))
        for each in store_of(folder).list():
            assert all(f"{value:g}" for value in each.metrics.values())
        store_of(folder).newest_good()

    return one


_NAMES = {"model": MODEL, "tensors": TENSORS, "values": VALUES}


def change_values(document: Any, draw: random.Random) -> Any:
    """training.json changed anywhere, or one of the worst that its form allows."""
    if draw.random() < 0.7:
        return change_tree(document, draw)
    return {"format": 1, "training": draw.choice(HOSTILE_VALUES), "model_extra": draw.choice(NASTY)}


def change_header(header: dict[str, Any], draw: random.Random) -> Any:
    """A header changed anywhere, in its sizes, or in the notes of ours in its metadata."""
    if draw.random() < 0.4:
        return change_tree(header, draw)
    name = draw.choice([name for name in header if name != "__metadata__"])
    match draw.randrange(4):
        case 0:
            return {**header, name: {**header[name], "shape": draw.choice(HOSTILE_SHAPES)}}
        case 1:
            start, end = header[name]["data_offsets"]
            offsets = draw.choice(
                [[start, 2**60], [0, end], [-8, end], [start, start], [start + 0.0, end], [end, start]]
            )
            return {**header, name: {**header[name], "data_offsets": offsets}}
        case 2:
            lie = draw.choice([[2**28, 0], [0, 2**40], [2**40, 0, 2]])
            entry = {"dtype": "F64", "shape": lie, "data_offsets": header[name]["data_offsets"][:1] * 2}
            notes = json.dumps({"dtypes": {"lie": "complex128"}})
            return {**header, "lie": entry, "__metadata__": {NOTES: notes}}
    metadata = dict(header.get("__metadata__", {}))
    notes = json.loads(metadata.get(NOTES, "{}"))
    if draw.random() < 0.5:
        kind = draw.choice(["aliases", "strides", "dtypes"])
        hostile = draw.choice(
            [name, [1, 0], [0] * 4, [2**62] * 4, [1.0, 2.0, 3.0, 4.0], [-1] * 4, "complex128", {}]
        )
        notes.setdefault(kind, {})[name] = hostile
    else:
        notes = change_tree(notes or {"aliases": {}}, draw)
    return {**header, "__metadata__": {**metadata, NOTES: json.dumps(notes)}}
