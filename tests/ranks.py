"""Runs a function on several gloo ranks, each a fork of one warm process, and gives what each returned."""

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_trainer.adapters.place import FENCE_VARIABLE
from dist_trainer.launchers import forkserver


class RankFailed(AssertionError):
    """A rank raised or died; the message holds its traceback."""


def run_ranks(
    ranks: int, function: Callable[..., Any], *args: Any, fence: int | None = None, timeout_s: float = 60
) -> list[Any]:
    """What `function(*args)` returns on each rank; it may use torchrun's variables as in real life."""
    forkserver.start({})
    context = multiprocessing.get_context("forkserver")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe(duplex=False)
        variables = _variables(rank, ranks, store.port, fence)
        process = context.Process(target=_rank, args=(theirs, variables, function, args))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + timeout_s)
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.kill()
            process.join()
            process.close()
            pipe.close()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        for rank, pipe in enumerate(pipes):
            if rank in results or not pipe.poll(0.01):
                continue
            try:
                succeeded, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RankFailed(f"rank {rank} died without a word") from None
            if not succeeded:
                raise RankFailed(f"rank {rank}:\n{value}")
            results[rank] = value
        if time.monotonic() > deadline:
            missing = sorted(set(range(len(pipes))) - set(results))
            raise RankFailed(f"ranks {missing} did not end in time")
    return [results[rank] for rank in range(len(pipes))]


def _variables(rank: int, ranks: int, port: int, fence: int | None) -> dict[str, str]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return variables if fence is None else {**variables, FENCE_VARIABLE: str(fence)}


def _rank(
    pipe: Connection, variables: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        pipe.send_bytes(pickle.dumps((True, function(*args))))  # tensors by value: this process ends
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
    os._exit(0)
