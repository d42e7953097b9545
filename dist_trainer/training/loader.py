"""Batches for each step, read here or by forked worker processes, with the same values either way."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dist_trainer.training.batch import Batch
from dist_trainer.training.fetch import (
    BadRows,
    Collate,
    Fetcher,
    Interrupted,
    never,
)
from dist_trainer.training.readers import Readers
from dist_trainer.training.sampler import Indices, ResumableSampler, Rows

__all__ = ["EvalLoader", "TrainLoader"]

# no training gets there: the draws of an evaluation are its own, and always the same
EVALUATION_EPOCH = 2**31


class TrainLoader:
    """Batches of a sampler's steps. `collate` gets a list of samples, by default torch's default_collate.

    Reading reseeds torch, random and NumPy for each sample: seed a step's own randomness after its batch.
    Raises DataError with the row's number and its error; with `bad_rows="skip"` such rows are left out.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: ResumableSampler,
        *,
        num_workers: int = 0,
        collate: Collate | None = None,
        bad_rows: BadRows = "raise",
        pin_memory: bool = False,
        seed: int = 0,
        name: str = "data.train",
        finish_later: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.sampler = sampler
        self._fetcher = Fetcher(
            dataset,
            collate=collate,
            bad_rows=bad_rows,
            seed=seed,
            name=name,
            finish_later=finish_later,
            channels_last=channels_last,
        )
        self.num_workers = num_workers
        self._pin_memory = pin_memory
        self._workers: Readers | None = None

    def reads_early(self, device: torch.device) -> bool:
        """Whether a step's batches are better read while the step before still runs, whose random numbers that
        must not touch. Loader processes read ahead themselves: then only a GPU's copies are left to be early."""
        if self.num_workers:
            return device.type == "cuda"
        return self._fetcher.draws_nothing

    def steps(self, first: int, last: int, *, interrupted: Interrupted = never) -> Iterator[list[Batch]]:
        """For each step in [first, last), counted over all epochs, its list of `accumulate_steps` batches.

        Workers are forked before this returns, so call it before threads are started. A second call ends the
        first one's workers. While waiting, ReadInterrupted is raised soon after `interrupted` says so.
        """
        self.close()
        if not self.num_workers:
            return self._read_here(first, last, interrupted)
        steps = range(first, last)
        self._workers = Readers(
            self.read, steps, self.num_workers, pin_memory=self._pin_memory, interrupted=interrupted
        )
        return iter(self._workers)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers:
            self._workers.close()
            self._workers = None

    def read(self, step: int, interrupted: Interrupted = never) -> list[Batch]:
        """One step's batches, read in this process."""
        return [self._fetcher.fetch(rows, interrupted) for rows in self.sampler.rows(step)]

    def read_apart(self, step: int) -> list[Batch]:
        """One step's batches, read by a process of its own where training's are.

        What a data set opens at its first read is then not open here when the workers are forked, which would
        share it, and its place in a file.
        """
        if not self.num_workers:
            return self.read(step)
        readers = Readers(self.read, range(step, step + 1), 1, pin_memory=False)
        try:
            return list(next(iter(readers)))
        finally:
            readers.close()

    def read_alone(self, place: int) -> Batch:
        """The batch of the one row at a place of the first epoch's order, read in this process."""
        return self._fetcher.fetch(self.sampler.row_at(place))

    def _read_here(self, first: int, last: int, interrupted: Interrupted) -> Iterator[list[Batch]]:
        for step in range(first, last):
            batches = self.read(step, interrupted)
            yield [batch.pin_memory() for batch in batches] if self._pin_memory else batches


class EvalLoader:
    """This rank's share of a data set, rows rank::world_size, each exactly once and in order.

    Iterating gives (numbers of the rows read, Batch), as often as wanted; workers stay from one time to the
    next. A rank beyond the last row gets nothing.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        num_workers: int = 0,
        collate: Collate | None = None,
        bad_rows: BadRows = "raise",
        seed: int = 0,
        pin_memory: bool = False,
        name: str = "data.val",
        finish_later: bool = False,
        channels_last: bool = False,
    ) -> None:
        self._fetcher = Fetcher(
            dataset,
            collate=collate,
            bad_rows=bad_rows,
            seed=seed,
            name=name,
            finish_later=finish_later,
            channels_last=channels_last,
        )
        self._mine = range(rank, len(dataset), world_size)
        self._batch_size = batch_size
        self.num_workers = num_workers
        self._pin_memory = pin_memory
        self._workers: Readers | None = None

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self._mine) // self._batch_size)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self._mine)

    def empty(self) -> tuple[Indices, Batch]:
        """A batch of no rows, shaped like the others."""
        none = np.empty(0, dtype=np.int64)
        return none, self._fetcher.fetch(Rows(EVALUATION_EPOCH, none, none))

    def __iter__(self) -> Iterator[tuple[Indices, Batch]]:
        self.start()
        batches = iter(self._workers) if self._workers else self._read_here()
        for number, batch in enumerate(batches):
            indices = self._indices(number)
            yield (indices[~np.isin(indices, batch.bad)] if batch.bad else indices), batch

    def start(self) -> None:
        """Fork the workers now, before threads are started, rather than at the first evaluation."""
        if self.num_workers and not self._workers and len(self):
            numbers = range(len(self))
            self._workers = Readers(
                self._read,
                numbers,
                min(self.num_workers, len(self)),
                pin_memory=self._pin_memory,
                persistent=True,
            )

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers:
            self._workers.close()
            self._workers = None

    def read_alone(self, place: int) -> Batch:
        """The batch of one row, this rank's or another's, read in this process."""
        index = np.array([place], dtype=np.int64)
        return self._fetcher.fetch(Rows(EVALUATION_EPOCH, index, index))

    def _indices(self, number: int) -> Indices:
        mine = self._mine[number * self._batch_size : (number + 1) * self._batch_size]
        return np.arange(mine.start, mine.stop, mine.step, dtype=np.int64)

    def _read(self, number: int) -> Batch:
        indices = self._indices(number)
        return self._fetcher.fetch(Rows(EVALUATION_EPOCH, indices, indices))

    def _read_here(self) -> Iterator[Batch]:
        for number in range(len(self)):
            batch = self._read(number)
            yield batch.pin_memory() if self._pin_memory else batch
