"""One micro-batch on its way from the data set to the device that trains on it."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from dist_trainer.data.draws import Keys

_NO_KEYS: Keys = np.empty(0, dtype=np.uint64)


@dataclass
class Batch:
    """One micro-batch: the collated samples, how many they are, and the numbers of rows left out as bad.

    Where there is a `finish`, the data are stored samples that it makes a batch of, by their keys.
    """

    data: Any
    rows: int
    bad: list[int] = field(default_factory=list)
    finish: Callable[[Any, Keys], Any] | None = None
    keys: Keys | None = None
    channels_last: bool = False  # what is left to do with images

    def pin_memory(self, device: str | None = None) -> "Batch":
        """The same batch in page-locked memory, for copies to a GPU that don't wait."""
        return replace(self, data=pin_memory(self.data, device))  # type: ignore[no-untyped-call]

    def on(self, device: torch.device) -> "Batch":
        """The same batch on the device, finished there; copies from pinned memory overlap with computing."""
        data = move_to(self.data, device)
        if self.finish is not None:
            data = self.finish(data, self.keys if self.keys is not None else _NO_KEYS)
        if self.channels_last:
            data = mapped(data, _in_channels_last)
        return Batch(data, self.rows, self.bad)


def move_to(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device; copies from pinned memory overlap with computing.

    What moves itself (a tokenizer's encoding, PyTorch Geometric's Batch) does, and stays what it is.
    """
    if device.type == "cpu":
        return batch
    return mapped(
        batch,
        lambda tensor: tensor.to(device, non_blocking=True),
        lambda whole: whole.to(device),  # what else it takes, only its maker knows
    )


def mapped(batch: Any, change: Callable[[Tensor], Tensor], whole: Callable[[Any], Any] | None = None) -> Any:
    """The batch with each of its tensors changed; what has a method `to` of its own by `whole`, if that is given."""
    if isinstance(batch, Tensor):
        return change(batch)
    if whole is not None and moves_itself(batch):
        return whole(batch)
    if is_record(batch):
        return _with(
            batch, {name: mapped(getattr(batch, name), change, whole) for name in field_names(batch)}
        )
    if isinstance(batch, Mapping):
        changed = {key: mapped(value, change, whole) for key, value in batch.items()}
        return type(batch)(changed) if moves_itself(batch) else changed  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change, whole) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(value, change, whole) for value in batch)
    return batch


def _in_channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def moves_itself(batch: Any) -> bool:
    """Whether it is an object of a library's own that takes its tensors along with a method `to`."""
    return not isinstance(batch, Tensor | type) and callable(getattr(batch, "to", None))


def is_record(batch: Any) -> bool:
    """Whether it is an instance of a dataclass."""
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)


def _with(record: Any, values: Mapping[str, Any]) -> Any:
    """A copy of the dataclass with these values, made without its __init__: that may compute, or ask for more."""
    changed = copy.copy(record)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def field_names(record: Any) -> list[str]:
    """The fields that a dataclass is made of."""
    return [entry.name for entry in dataclasses.fields(record) if entry.init]


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Its tensors."""
    if isinstance(batch, Tensor):
        yield batch
    elif is_record(batch):
        for name in field_names(batch):
            yield from tensors_of(getattr(batch, name))
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors_of(value)
    elif moves_itself(batch):
        yield from _tensors_inside(batch, set())


def _tensors_inside(mover: Any, seen: set[int]) -> Iterator[Tensor]:
    """Of an object of a library's own and those that it holds: a graph's are in a storage of its own."""
    seen.add(id(mover))
    for value in getattr(mover, "__dict__", {}).values():
        if not moves_itself(value):
            yield from tensors_of(value)
        elif id(value) not in seen:
            yield from _tensors_inside(value, seen)


class CannotBeCut(Exception):
    """An object of which only its own library knows what one of no rows is."""


def empty_like(one: Any, two: Any) -> Any:
    """The batch of no rows, told from one of one row and one of two: what grew is cut to none.

    Raises CannotBeCut.
    """
    if isinstance(one, torch.Tensor | np.ndarray):
        return one[tuple(slice(0, None if a == b else 0) for a, b in zip(one.shape, two.shape, strict=True))]
    if isinstance(one, Mapping):  # and a tokenizer's encoding is one, though it moves itself
        cut = {key: empty_like(one[key], two[key]) for key in one}
        return cut if type(one) is dict else type(one)(cut)  # type: ignore[call-arg]
    if isinstance(one, list | tuple):
        return _empty_sequence(one, two)
    if is_record(one):
        return replace(
            one, **{name: empty_like(getattr(one, name), getattr(two, name)) for name in field_names(one)}
        )
    if moves_itself(one):
        raise CannotBeCut(type(one).__name__)
    if isinstance(one, int | float) and not isinstance(one, bool):
        return 2 * one - two  # a count of rows becomes 0, a constant stays
    return one


def _empty_sequence(one: Any, two: Any) -> Any:
    if len(one) != len(two):
        return one[:0]
    parts = [empty_like(a, b) for a, b in zip(one, two, strict=True)]
    return type(one)(*parts) if hasattr(one, "_fields") else type(one)(parts)
