"""Forked processes that read ahead: how they start, are waited for, and end."""

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import queues
from multiprocessing.util import Finalize
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from dist_trainer.errors import DataError
from dist_trainer.training.fetch import Interrupted, ReadInterrupted

_PR_SET_PDEATHSIG = 1
_OF_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PREFETCHED = 4  # pieces of work per process
_POLL_S = 0.25
_TIMED_OUT = "DataLoader timed out"  # torch's words
_ENDS_WITHIN_S = 0.5


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


class Readers:
    """Forked processes that do numbered work; iterating gives the results in order."""

    def __init__(
        self,
        work: Callable[[int], Any],
        numbers: range,
        num_workers: int,
        *,
        pin_memory: bool,
        persistent: bool = False,
        interrupted: Interrupted | None = None,
    ) -> None:
        self._interrupted = interrupted
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
            timeout=_POLL_S if interrupted else 0.0,
            generator=torch.Generator(),  # leave the global generator untouched
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)  # until each worker ignores them
        collects = gc.isenabled()
        gc.disable()  # likewise: this process's garbage may be a process group, which must not be ended there
        try:
            self._iterator = cast(Any, iter(self._loader))  # its processes have no public name
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if collects:
                gc.enable()
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
            if self._interrupted and self._interrupted():
                raise ReadInterrupted
            try:
                result = next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if _TIMED_OUT in str(error) and self._is_alive():
                    continue  # its state is that of before; `interrupted` is due to be asked
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a loader process (data.num_workers) died, by its own fault or for want of memory: {error}"
                ) from error
            if isinstance(result, _Failed):
                raise DataError(result.message)
            yield result

    def _is_alive(self) -> bool:
        """Whether the thread that pins memory, where there is one, may still give something."""
        thread = getattr(self._iterator, "_pin_memory_thread", None)
        return thread is None or thread.is_alive()

    def close(self) -> None:
        """End them, by SIGKILL those that are in the midst of something: they hold no state."""
        ends_at = time.monotonic() + _ENDS_WITHIN_S
        workers: list[Any] = self._iterator._workers
        for worker in workers:  # torch would wait 5 s for each of them
            worker.join = partial(_join_until, worker.join, ends_at)
        self._iterator._shutdown_workers()
        for worker in workers:
            del worker.join
            worker.join()
        self._at_exit.cancel()


def _join_until(join: Callable[[float], None], ends_at: float, timeout: float | None = None) -> None:
    join(max(0.0, ends_at - time.monotonic()))


def _unchanged(value: Any) -> Any:
    return value


def _enter_worker(parent: int, worker_id: int) -> None:
    """Leave signals and garbage to the parent, and die with it."""
    gc.freeze()
    gc.enable()
    for number in _OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_PARENT)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    torch.set_num_threads(1)
    # what cannot be sent is only printed by multiprocessing, and would be waited for without an end
    queues.Queue._on_queue_feeder_error = staticmethod(_leave)  # type: ignore[attr-defined]


def _leave(error: BaseException, batch: object) -> None:
    """In a worker: the process that waits for the batch learns of its end."""
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def _kill(workers: list[Any]) -> None:
    """End them at once, at this process's own exit; they hold no state."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler takes this for a crash
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
