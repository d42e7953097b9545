"""Which dimensions of a model's inputs and outputs grow with the batch, told from calls with 1 and with 7 rows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dist_trainer.export.example import Call, leaves
from dist_trainer.training.batch import moves_itself

BATCH = "batch"


def dimensions(one: Tensor, seven: Tensor) -> list[int | str]:
    """The shape, with "batch" for what has the rows of the batch, and "any" for what differs otherwise."""
    if one.dim() != seven.dim():
        return ["any"] * seven.dim()
    pairs = zip(one.shape, seven.shape, strict=True)
    return [a if a == b else BATCH if (a, b) == (1, 7) else "any" for a, b in pairs]


def dynamic_shapes(calls: list[Call]) -> dict[str, Any]:
    """What torch.export is to keep open, by the names of the arguments."""
    one, seven = calls
    batch = torch.export.Dim(BATCH)

    def open_in(first: Any, second: Any) -> Any:
        if isinstance(first, Tensor):
            sizes = dimensions(first, second)
            return {
                place: batch if size == BATCH else torch.export.Dim.AUTO
                for place, size in enumerate(sizes)
                if isinstance(size, str)
            }
        if isinstance(first, Mapping):
            return {key: open_in(value, second[key]) for key, value in first.items()}
        if isinstance(first, tuple) and hasattr(first, "_fields"):
            return type(first)(*map(open_in, first, second))
        if isinstance(first, (tuple, list)):
            return type(first)(map(open_in, first, second))
        return None

    return {name: open_in(one.named[name], value) for name, value in seven.named.items()}


def described_inputs(calls: list[Call]) -> list[dict[str, Any]]:
    """Name, shape and type of each input, and whether it is given by position or by name.

    An object of a library's own (PyTorch Geometric's Batch) has no shape, and its class for a type.
    """
    one, seven = calls
    small, by_name = (
        dict(leaves(one.named)),
        {name for name, _ in leaves(seven.keywords)} | seven.keywords.keys(),
    )
    found = [_described(name, small.get(name, tensor), tensor) for name, tensor in leaves(seven.named)]
    objects = [(name, value) for name, value in seven.named.items() if moves_itself(value)]
    found += [
        {"name": name, "shape": None, "dtype": type(value).__name__}
        for name, value in objects
        if not any(leaves(value))
    ]
    return [{**each, "given": "by name" if each["name"] in by_name else "by position"} for each in found]


def described_outputs(calls: list[Call]) -> list[dict[str, Any]]:
    """Name, shape and type of each output."""
    one, seven = calls
    small = [*one.outputs, *seven.outputs[len(one.outputs) :]]  # a list may have one for each row
    names = (
        ["output"] if len(seven.outputs) == 1 else [f"output_{place}" for place in range(len(seven.outputs))]
    )
    return [_described(*each) for each in zip(names, small, seven.outputs, strict=False)]


def _described(name: str, one: Tensor, seven: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": dimensions(one, seven), "dtype": str(seven.dtype).removeprefix("torch.")}
