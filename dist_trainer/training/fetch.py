"""Turns row numbers into one collated micro-batch: seeds samples, finds bad rows, shapes empty batches."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Subset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from dist_trainer.data.draws import Keys, sample_keys
from dist_trainer.errors import DataError
from dist_trainer.training.sampler import Indices, Rows, check_map_style

BadRows = Literal["raise", "skip"]
Collate = Callable[[list[Any]], Any]

Interrupted = Callable[[], bool]

_TEMPLATE_TRIES = 100
_NAMED_ROWS = 8


class ReadInterrupted(Exception):
    """The rows asked for are not needed any more."""


def never() -> bool:
    """Nobody interrupts."""
    return False


@dataclass
class Batch:
    """One micro-batch: the collated samples, how many they are, and the numbers of rows left out as bad."""

    data: Any
    rows: int
    bad: list[int] = field(default_factory=list)

    def pin_memory(self, device: str | None = None) -> "Batch":
        """The same batch in page-locked memory, for copies to a GPU that don't wait."""
        return Batch(pin_memory(self.data, device), self.rows, self.bad)  # type: ignore[no-untyped-call]


class Fetcher:
    """Reads micro-batches of one data set; `name` is its key in the configuration, for messages.

    A data set may offer, besides __getitem__ and __len__:
    `batch(indices, keys)`: a collated batch at once, every random draw made from a sample's key;
    `__getitems__(indices)`: a list of samples at once (one that draws random numbers is better off without);
    `invalid_rows`: a mapping from the numbers of rows that cannot be used to the reason.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        collate: Collate | None = None,
        bad_rows: BadRows = "raise",
        seed: int = 0,
        name: str = "data.train",
    ) -> None:
        check_map_style(dataset, name)
        self.dataset = dataset
        self.collate = collate or default_collate
        self.bad_rows = bad_rows
        self.seed = seed
        self.name = name
        self._whole = hasattr(dataset, "batch")
        self._items = not self._whole and _fetches_lists(dataset)
        self._invalid: Mapping[int, str] = getattr(dataset, "invalid_rows", None) or {}
        self._invalid_numbers = np.array(sorted(self._invalid), dtype=np.int64)
        self._template: tuple[Any, Any] | None = None

    def fetch(self, rows: Rows, interrupted: Interrupted = never) -> Batch:
        """The micro-batch of these rows; DataError names the row that failed and why.

        Raises ReadInterrupted as soon as `interrupted` says so, between two samples.
        """
        indices, keys, bad = self._without_invalid(rows)
        if not len(indices):
            return Batch(self._empty(), 0, bad)
        try:
            return Batch(self._read(indices, keys, interrupted), len(indices), bad)
        except ReadInterrupted:
            raise
        except Exception as error:
            failed = self._failing_rows(indices, keys)
            if not failed:
                raise DataError(self._message(indices.tolist(), error)) from error
        if self.bad_rows == "raise":
            index, cause = next(iter(failed.items()))
            raise DataError(self._message([index], cause)) from cause
        return self._fetch_others(indices, keys, bad, list(failed))

    def _fetch_others(self, indices: Indices, keys: Keys, bad: list[int], failed: list[int]) -> Batch:
        kept = ~np.isin(indices, failed)
        bad = bad + indices[~kept].tolist()
        if not kept.any():
            return Batch(self._empty(), 0, bad)
        try:
            return Batch(self._read(indices[kept], keys[kept]), int(kept.sum()), bad)
        except Exception as error:
            raise DataError(self._message(indices[kept].tolist(), error)) from error

    def _without_invalid(self, rows: Rows) -> tuple[Indices, Keys, list[int]]:
        keys = sample_keys(self.seed, rows.epoch, rows.positions)
        if not self._invalid:
            return rows.indices, keys, []
        invalid = np.isin(rows.indices, self._invalid_numbers)
        if invalid.any() and self.bad_rows == "raise":
            index = int(rows.indices[invalid][0])
            raise DataError(self._message([index], DataError(self._invalid[index])))
        return rows.indices[~invalid], keys[~invalid], rows.indices[invalid].tolist()

    def _read(self, indices: Indices, keys: Keys, interrupted: Interrupted = never) -> Any:
        if interrupted():
            raise ReadInterrupted
        if self._whole:
            return self.dataset.batch(indices, keys)
        if self._items:
            seed_sample(int(keys[0]))
            return self.collate(self.dataset.__getitems__(indices.tolist()))
        samples = []
        for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
            if interrupted():
                raise ReadInterrupted
            seed_sample(key)
            samples.append(self.dataset[index])
        return self.collate(samples)

    def _failing_rows(self, indices: Indices, keys: Keys) -> dict[int, Exception]:
        failed: dict[int, Exception] = {}
        for number, index in enumerate(indices.tolist()):
            try:
                self._read_alone(indices[number : number + 1], keys[number : number + 1])
            except Exception as error:
                failed[index] = error
        return failed

    def _read_alone(self, index: Indices, key: Keys) -> None:
        if self._whole:
            self.dataset.batch(index, key)
            return
        seed_sample(int(key[0]))
        if self._items:
            self.dataset.__getitems__(index.tolist())
        else:
            self.dataset[int(index[0])]

    def _message(self, indices: list[int], error: Exception) -> str:
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        if len(indices) == 1:
            remedy = "; `data.bad_rows: skip` leaves such rows out" if self.bad_rows == "raise" else ""
            return f"{self.name} row {indices[0]}: {kind}{error}{remedy}"
        named = ", ".join(map(str, indices[:_NAMED_ROWS])) + (", ..." if len(indices) > _NAMED_ROWS else "")
        return f"{self.name} rows {named} can each be read, but not put into one batch: {kind}{error}"

    def _empty(self) -> Any:
        """A batch of no rows with the structure of any other, cut from two real ones."""
        if self._template is None:
            self._template = self._read_template()
        return empty_like(*self._template)

    def _read_template(self) -> tuple[Any, Any]:
        first = range(min(len(self.dataset), _TEMPLATE_TRIES))
        rows = [index for index in first if index not in self._invalid]
        last: Exception = DataError(f"the first {_TEMPLATE_TRIES} are all bad")
        for index in rows:
            indices = np.array([index, index], dtype=np.int64)
            keys = sample_keys(self.seed, 0, indices)
            try:
                return self._read(indices[:1], keys[:1]), self._read(indices, keys)
            except Exception as error:
                last = error
        raise DataError(self._message(rows[-1:] or [0], last)) from last


def seed_sample(key: int) -> None:
    """Seed what a data set may draw from: torch's CPU generator, Python's random and NumPy's."""
    torch.default_generator.manual_seed(key & (2**63 - 1))
    random.seed(key)
    np.random.seed(key & (2**32 - 1))


def empty_like(one: Any, two: Any) -> Any:
    """The batch of no rows, told from one of one row and one of two: what grew is cut to none."""
    if isinstance(one, torch.Tensor | np.ndarray):
        return one[tuple(slice(0, None if a == b else 0) for a, b in zip(one.shape, two.shape, strict=True))]
    if isinstance(one, Mapping):
        cut = {key: empty_like(one[key], two[key]) for key in one}
        return cut if type(one) is dict else type(one)(cut)  # type: ignore[call-arg]
    if isinstance(one, list | tuple):
        return _empty_sequence(one, two)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [entry.name for entry in dataclasses.fields(one) if entry.init]
        return dataclasses.replace(
            one, **{name: empty_like(getattr(one, name), getattr(two, name)) for name in names}
        )
    if isinstance(one, int | float) and not isinstance(one, bool):
        return 2 * one - two  # a count of rows becomes 0, a constant stays
    return one


def _empty_sequence(one: Any, two: Any) -> Any:
    if len(one) != len(two):
        return one[:0]
    parts = [empty_like(a, b) for a, b in zip(one, two, strict=True)]
    return type(one)(*parts) if hasattr(one, "_fields") else type(one)(parts)


def _fetches_lists(dataset: Any) -> bool:
    # torch's Subset offers __getitems__ even where the set below has none: then samples are seeded singly.
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")
