"""Turns row numbers into one collated micro-batch: seeds samples, finds bad rows, shapes empty batches."""

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset, default_collate

from dist_trainer.data.draws import Keys, sample_keys
from dist_trainer.data.memory import has_halves
from dist_trainer.errors import DataError
from dist_trainer.training.batch import Batch, CannotBeCut, empty_like
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


class Fetcher:
    """Reads micro-batches of one data set; `name` is its key in the configuration, for messages.

    A data set may offer, besides __getitem__ and __len__:
    `batch(indices, keys)`: a collated batch at once, every random draw made from a sample's key;
    `__getitems__(indices)`: a list of samples at once (one that draws random numbers is better off without);
    `invalid_rows`: a mapping from the numbers of rows that cannot be used to the reason.
    `stored(indices)` and `finish(batch, keys)`: the two halves of `batch`, all of one class; with `finish_later`
    the second one is left to who trains on it, if its `any_device` says that it works on a GPU.
    The rows of a plain TensorDataset are taken out all at once, as default_collate would stack them.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        collate: Collate | None = None,
        bad_rows: BadRows = "raise",
        seed: int = 0,
        name: str = "data.train",
        finish_later: bool = False,
        channels_last: bool = False,
    ) -> None:
        check_map_style(dataset, name)
        self.dataset = dataset
        self.collate = collate or default_collate
        self.bad_rows = bad_rows
        self.seed = seed
        self.name = name
        self.channels_last = channels_last
        self._whole = hasattr(dataset, "batch")
        finish = dataset.finish if finish_later and has_halves(dataset) else None
        self._finish = finish if getattr(finish, "any_device", False) else None
        self._items = not self._whole and _fetches_lists(dataset)
        # what a subclass does in __getitem__ is its own
        self._are_tensors = type(dataset) is TensorDataset and self.collate is default_collate
        self._invalid: Mapping[int, str] = getattr(dataset, "invalid_rows", None) or {}
        self._invalid_numbers = np.array(sorted(self._invalid), dtype=np.int64)
        self._template: tuple[Any, Any] | None = None

    @property
    def draws_nothing(self) -> bool:
        """Whether reading leaves torch's, Python's and NumPy's own generators alone."""
        return self._whole or self._are_tensors

    def fetch(self, rows: Rows, interrupted: Interrupted = never) -> Batch:
        """The micro-batch of these rows; DataError names the row that failed and why.

        Raises ReadInterrupted as soon as `interrupted` says so, between two samples.
        """
        indices, keys, bad = self._without_invalid(rows)
        if not len(indices):
            return Batch(self._empty(), 0, bad, channels_last=self.channels_last)
        try:
            return self._batch(self._read(indices, keys, interrupted), keys, bad)
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
            return Batch(self._empty(), 0, bad, channels_last=self.channels_last)
        try:
            return self._batch(self._read(indices[kept], keys[kept]), keys[kept], bad)
        except Exception as error:
            raise DataError(self._message(indices[kept].tolist(), error)) from error

    def _batch(self, data: Any, keys: Keys, bad: list[int]) -> Batch:
        return Batch(
            data,
            len(keys),
            bad,
            finish=self._finish,
            keys=keys if self._finish is not None else None,
            channels_last=self.channels_last,
        )

    def _without_invalid(self, rows: Rows) -> tuple[Indices, Keys, list[int]]:
        keys = self._keys(rows)
        if not self._invalid:
            return rows.indices, keys, []
        invalid = np.isin(rows.indices, self._invalid_numbers)
        if invalid.any() and self.bad_rows == "raise":
            index = int(rows.indices[invalid][0])
            raise DataError(self._message([index], DataError(self._invalid[index])))
        return rows.indices[~invalid], keys[~invalid], rows.indices[invalid].tolist()

    def _keys(self, rows: Rows) -> Keys:
        if self._are_tensors:  # nothing is drawn for them
            return np.zeros(len(rows.positions), dtype=np.uint64)
        return sample_keys(self.seed, rows.epoch, rows.positions)

    def _read(self, indices: Indices, keys: Keys, interrupted: Interrupted = never) -> Any:
        if interrupted():
            raise ReadInterrupted
        if self._finish is not None:
            return self.dataset.stored(indices)
        if self._whole:
            return self.dataset.batch(indices, keys)
        if self._are_tensors:
            numbers = torch.from_numpy(indices)
            return [tensor.index_select(0, numbers.to(tensor.device)) for tensor in self.dataset.tensors]
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

    def _read_finished(self, indices: Indices, keys: Keys) -> Any:
        data = self._read(indices, keys)
        return data if self._finish is None else self._finish(data, keys)

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
        try:
            return empty_like(*self._template)
        except CannotBeCut as kind:
            return self._collate_nothing(kind)

    def _collate_nothing(self, kind: CannotBeCut) -> Any:
        try:
            return self.collate([])
        except Exception as error:
            raise DataError(
                f"{self.name}: a rank may have no row of a step, and what a {kind} of no rows is, only its maker "
                f"knows: data.collate was called with an empty list, and raised {type(error).__name__}: {error}; "
                "let it make an empty batch of an empty list, or put the tensors into a dict, a tuple or a dataclass"
            ) from error

    def _read_template(self) -> tuple[Any, Any]:
        first = range(min(len(self.dataset), _TEMPLATE_TRIES))
        rows = [index for index in first if index not in self._invalid]
        last: Exception = DataError(f"the first {_TEMPLATE_TRIES} are all bad")
        for index in rows:
            indices = np.array([index, index], dtype=np.int64)
            keys = sample_keys(self.seed, 0, indices)
            try:
                return self._read_finished(indices[:1], keys[:1]), self._read_finished(indices, keys)
            except Exception as error:
                last = error
        raise DataError(self._message(rows[-1:] or [0], last)) from last


def seed_sample(key: int) -> None:
    """Seed what a data set may draw from: torch's CPU generator, Python's random and NumPy's."""
    torch.default_generator.manual_seed(key & (2**63 - 1))
    random.seed(key)
    np.random.seed(key & (2**32 - 1))


def _fetches_lists(dataset: Any) -> bool:
    # torch's Subset offers __getitems__ even where the set below has none: then samples are seeded singly.
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")
