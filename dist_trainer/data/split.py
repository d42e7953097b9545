"""Parts of a data set, drawn once by a seed: what `data.split` holds out for validation and test."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dist_trainer.data.draws import Keys, mix
from dist_trainer.data.memory import has_halves
from dist_trainer.data.permutation import Permutation
from dist_trainer.errors import DataError

_SPLIT_SALT = 0x73706C6974


def split_dataset(dataset: Any, fractions: Mapping[str, float], seed: int) -> "dict[str, Part]":
    """The named fractions of a data set, and what is left as "train": disjoint, the same for the same seed.

    Held-out parts are not augmented where the data set offers `without_augmentation()`. DataError where a
    part would be empty.
    """
    length = len(dataset)
    order = Permutation(length, mix(seed ^ _SPLIT_SALT))(np.arange(length))
    plain = dataset.without_augmentation() if hasattr(dataset, "without_augmentation") else dataset
    parts, first = {}, 0
    for name, fraction in fractions.items():
        last = first + round(length * fraction)
        if fraction and last == first:
            raise DataError(f"data.split.{name}: {fraction:g} of {length} rows is not one row")
        parts[name] = part_of(plain, np.sort(order[first:last]))
        first = last
    if first >= length:
        raise DataError(f"data.split leaves no rows of {length} to train on")
    return {"train": part_of(dataset, np.sort(order[first:]))} | parts


def part_of(dataset: Any, rows: NDArray[np.int64]) -> "Part":
    """These rows of a data set, with the fast ways to fetch them that it has."""
    if has_halves(dataset):
        return _StoredPart(dataset, rows)
    if hasattr(dataset, "batch"):
        return _BatchPart(dataset, rows)
    return _ListPart(dataset, rows) if hasattr(dataset, "__getitems__") else Part(dataset, rows)


class Part(Dataset[Any]):
    """Some rows of a data set, numbered from 0."""

    def __init__(self, dataset: Any, rows: NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.rows[index])]

    @cached_property
    def targets(self) -> NDArray[Any] | None:
        """The class of each row, where the data set knows it."""
        return self._of_rows("targets")

    @cached_property
    def sample_weights(self) -> NDArray[Any] | None:
        """The weight of each row, where the data set has weights."""
        return self._of_rows("sample_weights")

    @cached_property
    def invalid_rows(self) -> dict[int, str]:
        """Rows that cannot be used, by their number in this part, with the data set's own number."""
        whole = getattr(self.dataset, "invalid_rows", None) or {}
        if not whole:
            return {}
        found = np.flatnonzero(np.isin(self.rows, list(whole)))
        return {
            int(row): f"{whole[int(self.rows[row])]} (row {self.rows[row]} before the split)" for row in found
        }

    def _of_rows(self, name: str) -> NDArray[Any] | None:
        values = getattr(self.dataset, name, None)
        return None if values is None else np.asarray(values)[self.rows]


class _BatchPart(Part):
    def batch(self, indices: NDArray[np.int64], keys: Keys) -> Any:
        return self.dataset.batch(self.rows[indices], keys)


class _StoredPart(Part):
    def batch(self, indices: NDArray[np.int64], keys: Keys) -> Any:
        return self.dataset.batch(self.rows[indices], keys)

    def stored(self, indices: NDArray[np.int64]) -> Any:
        return self.dataset.stored(self.rows[indices])

    @property
    def finish(self) -> Any:
        return self.dataset.finish


class _ListPart(Part):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        samples: list[Any] = self.dataset.__getitems__(self.rows[indices].tolist())
        return samples
