"""Batches for each step, read here or by forked worker processes, with the same values either way."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dist_trainer.errors import DataError
from dist_trainer.training.fetch import BadRows, Batch, Collate, Fetcher
from dist_trainer.training.sampler import Indices, ResumableSampler, Rows

__all__ = ["Batch", "EvalLoader", "TrainLoader"]

# no training gets there: the draws of an evaluation are its own, and always the same
EVALUATION_EPOCH = 2**31

_PR_SET_PDEATHSIG = 1
_OF_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PREFETCHED = 4  # steps per worker


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
    ) -> None:
        self.sampler = sampler
        self._fetcher = Fetcher(dataset, collate=collate, bad_rows=bad_rows, seed=seed, name=name)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._workers: _Workers | None = None

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """For each step in [first, last), counted over all epochs, its list of `accumulate_steps` batches.

        Workers are forked before this returns, so call it before threads are started. A second call ends the
        first one's workers.
        """
        self.close()
        if not self._num_workers:
            return self._read_here(first, last)
        steps = range(first, last)
        self._workers = _Workers(self.read, steps, self._num_workers, pin_memory=self._pin_memory)
        return iter(self._workers)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers:
            self._workers.close()
            self._workers = None

    def read(self, step: int) -> list[Batch]:
        """One step's batches, read in this process."""
        return [self._fetcher.fetch(rows) for rows in self.sampler.rows(step)]

    def _read_here(self, first: int, last: int) -> Iterator[list[Batch]]:
        for step in range(first, last):
            batches = self.read(step)
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
    ) -> None:
        self._fetcher = Fetcher(dataset, collate=collate, bad_rows=bad_rows, seed=seed, name=name)
        self._mine = range(rank, len(dataset), world_size)
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._workers: _Workers | None = None

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self._mine) // self._batch_size)

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
        if self._num_workers and not self._workers and len(self):
            numbers = range(len(self))
            self._workers = _Workers(
                self._read,
                numbers,
                min(self._num_workers, len(self)),
                pin_memory=self._pin_memory,
                persistent=True,
            )

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers:
            self._workers.close()
            self._workers = None

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


@dataclass(frozen=True)
class _Failed:
    message: str


class _Tasks(Dataset[Any]):
    """A data set whose rows are pieces of work; a failure is a value, lest torch wrap it in its own text."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        self.work = work

    def __getitem__(self, number: int) -> Any:
        try:
            return self.work(number)
        except DataError as error:
            return _Failed(str(error))


class _Workers:
    """Forked processes that do numbered work; iterating gives the results in order."""

    def __init__(
        self,
        work: Callable[[int], Any],
        numbers: range,
        num_workers: int,
        *,
        pin_memory: bool,
        persistent: bool = False,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _Tasks(work),
            sampler=numbers,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            multiprocessing_context="fork",  # forkserver starts cold: 13 s to the first batch
            worker_init_fn=partial(_enter_worker, os.getpid()),
            prefetch_factor=_PREFETCHED,
            pin_memory=pin_memory,
            persistent_workers=persistent,
            generator=torch.Generator(),  # leave the global generator untouched
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)  # until each worker ignores them
        try:
            self._iterator = cast(Any, iter(self._loader))  # its processes have no public name
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._fresh = True
        processes: list[Any] = self._iterator._workers
        for worker in processes:
            worker.terminate = worker.kill  # they ignore TERM, by which torch would end a stuck one
        # for the same reason multiprocessing's own exit would wait for them for ever
        self._at_exit = Finalize(None, _kill, args=(processes,), exitpriority=10)

    def __iter__(self) -> Iterator[Any]:
        if not self._fresh:
            self._iterator = cast(Any, iter(self._loader))
        self._fresh = False
        while True:
            try:
                result = next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a loader process (data.num_workers) died, by its own fault or for want of memory: {error}"
                ) from error
            if isinstance(result, _Failed):
                raise DataError(result.message)
            yield result

    def close(self) -> None:
        self._iterator._shutdown_workers()
        self._at_exit.cancel()


def _unchanged(value: Any) -> Any:
    return value


def _enter_worker(parent: int, worker_id: int) -> None:
    """Leave signals to the parent, and die with it."""
    for number in _OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_PARENT)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    torch.set_num_threads(1)


def _kill(workers: list[Any]) -> None:
    """End them at once, at this process's own exit; they hold no state."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler takes this for a crash
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
