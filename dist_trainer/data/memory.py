"""Samples held in memory as one tensor of inputs and one of targets, fetched a whole batch at a time."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dist_trainer.data.augment import Augmentation, Finish, Normalize
from dist_trainer.data.draws import Keys
from dist_trainer.errors import DataError


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """(input, target) pairs. Bytes stay bytes until a batch is made: then they are divided by 255.

    `augment` is applied to the batch as it is stored, `normalize` to the float batch. `invalid_rows` maps
    rows that cannot be used to the reason; those with a number that isn't finite are added here. Raises
    DataError where inputs and targets differ in length or the augmentations don't fit the inputs.
    """

    def __init__(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        *,
        augment: Sequence[Augmentation] = (),
        normalize: Callable[[Tensor], Tensor] | None = None,
        invalid_rows: Mapping[int, str] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs and {len(targets)} targets; each input needs one target")
        if augment and inputs.ndim != 4:
            raise DataError(
                f"augment needs images of shape (rows, channels, height, width), got {inputs.shape}"
            )
        self.inputs = _tensor(inputs)
        self._targets = _tensor(targets)
        self.augment = tuple(augment)
        self.normalize = normalize
        self.invalid_rows = dict(invalid_rows or {}) | _not_finite(self.inputs, "input")
        self.invalid_rows |= _not_finite(self._targets, "target")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample; its augmentation is drawn from torch's generator."""
        key = torch.randint(2**62, (1,)).numpy().astype(np.uint64)
        inputs, targets = self.batch(np.array([index]), key)
        return inputs[0], targets[0]

    def batch(self, indices: NDArray[np.int64], keys: Keys) -> tuple[Tensor, Tensor]:
        """The samples at these rows, augmented by their keys."""
        return self.finish(self.stored(indices), keys)

    def stored(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The same before `finish` makes them what is trained on: a fourth of the bytes, where they are bytes."""
        rows = torch.from_numpy(indices)
        return self.inputs.index_select(0, rows), self._targets.index_select(0, rows)

    @property
    def finish(self) -> Finish:
        """What is left to do with stored samples, here or on the device that trains."""
        return Finish(self.augment, self.normalize)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """What is done to a stored sample but for augmentation, step by step, as export.json has it."""
        steps: list[dict[str, Any]] = []
        if self.inputs.dtype == torch.uint8:
            steps.append({"divide_by": 255.0})
        if isinstance(self.normalize, Normalize):
            mean, deviation = self.normalize.mean.tolist(), self.normalize.std.tolist()
            steps.append({"subtract": mean, "divide_by": deviation, "dimension": 1})
        elif self.normalize is not None:
            steps.append({"call": repr(self.normalize)})
        if self.inputs.dim() == 4:
            steps.append({"layout": ["rows", "channels", "height", "width"]})
        return steps

    @property
    def targets(self) -> NDArray[np.int64] | None:
        """The class of each row, for `data.order: balanced`; None where targets are no classes."""
        if self._targets.dim() != 1 or self._targets.is_floating_point():
            return None
        return self._targets.numpy()

    def without_augmentation(self) -> Self:
        """The same samples, memory shared, as they are: for the parts held out of training."""
        plain = copy.copy(self)
        plain.augment = ()
        return plain


def has_halves(dataset: Any) -> bool:
    """Whether `batch` is `finish` after `stored`: all three of one class. A subclass may have a batch of its own."""
    owner = next((each for each in type(dataset).__mro__ if "batch" in vars(each)), None)
    return owner is not None and {"stored", "finish"} <= vars(owner).keys()


def _tensor(values: NDArray[Any]) -> Tensor:
    if values.dtype == np.uint8 and values.ndim > 1:
        return torch.from_numpy(np.ascontiguousarray(values))
    if values.dtype.kind in "bui":
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32))
    raise DataError(f"arrays must hold numbers, got {values.dtype} of shape {values.shape}")


def _not_finite(values: Tensor, name: str) -> dict[int, str]:
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return {}
    bad = ~torch.isfinite(values.reshape(len(values), -1)).all(dim=1)
    return {int(row): f"its {name} holds a number that is not finite" for row in bad.nonzero()[:, 0]}
