"""Reads a few rows of each data set as training would, to see whether the ranks have the same data."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from dist_trainer.data.draws import mix
from dist_trainer.errors import DataError
from dist_trainer.training import digests
from dist_trainer.training.batch import Batch
from dist_trainer.training.fetch import ReadInterrupted
from dist_trainer.training.readers import Readers

_ROWS = 3  # of each data set
_READ_FOR_S = 1.0


class Loader(Protocol):
    """What reads a data set's rows in training or evaluation."""

    num_workers: int

    def read_alone(self, place: int) -> Batch:
        """The batch of the one row at a place of the first epoch's order."""


@dataclass(frozen=True)
class _Work:
    """One row of one data set; by number, since a forked reader is told no more."""

    places: list[tuple[str, int]]
    loaders: Mapping[str, Loader]

    def __call__(self, number: int) -> str:
        """A digest of the row; empty where it cannot be compared.

        One that cannot be read is bad_rows' matter. One that is read otherwise the second time draws from
        elsewhere than the seeded generators.
        """
        split, place = self.places[number]
        first = self._read(split, place)
        return first if first == self._read(split, place) else ""

    def _read(self, split: str, place: int) -> str:
        try:
            batch = self.loaders[split].read_alone(place)
        except Exception:
            return ""
        return digests.of_value(batch.on(torch.device("cpu")).data) if batch.rows else ""


def sample(loaders: Mapping[str, Loader], lengths: Mapping[str, int], seed: int) -> dict[str, str]:
    """Digests of a few rows, drawn by seed, by `data.train, row 17 of the first epoch`; about a second's worth.

    Rows are read where training reads them: in a forked process where it has such, so that what a data set
    opens at its first read is not open before the loaders are forked.
    """
    places = [
        (split, mix(mix(seed) + 2**40 + number) % lengths[split])
        for number in range(_ROWS)
        for split in loaders
    ]
    work = _Work(places, loaders)
    forked = any(loader.num_workers for loader in loaders.values())
    found = {}
    for number, digest in enumerate(_read_forked(work) if forked else _read_here(work)):
        split, place = places[number]
        if digest:
            found[f"data.{split}, row {place} of its order"] = digest
    return found


def _read_here(work: _Work) -> Iterator[str]:
    ends_at = time.monotonic() + _READ_FOR_S
    for number in range(len(work.places)):
        if time.monotonic() > ends_at:
            return
        yield work(number)


def _read_forked(work: _Work) -> Iterator[str]:
    ends_at = time.monotonic() + _READ_FOR_S
    numbers = range(len(work.places))
    readers = Readers(work, numbers, 1, pin_memory=False, interrupted=lambda: time.monotonic() > ends_at)
    try:
        yield from readers
    except (ReadInterrupted, DataError):  # it takes too long, or the process died: training will say so
        return
    finally:
        readers.close()
