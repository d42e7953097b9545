"""How long all-reduces take between a few processes that know each other already, over one interface or GPU to GPU.

Beside adapters/distributed.py the one user of torch.distributed: it makes groups of their own and leaves the
process's default group alone, but for NCCL's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

__all__ = ["Store", "Times", "gloo_times", "nccl_times", "nccl_version", "store_at"]

_SMALL = 2  # numbers of 4 bytes: less than any packet
_LARGE_BYTES = 16_000_000
_SMALL_TIMES, _LARGE_TIMES = 50, 5


@dataclass(frozen=True)
class Times:
    """Of an all-reduce: of 8 bytes, and of 16 MB, as the bytes of the tensor by the time that they take."""

    latency_us: float
    bandwidth_gb_s: float


def store_at(address: str, port: int, size: int, *, listens_by: int | None, timeout_s: float) -> Store:
    """Where the processes meet. Who has the descriptor of a socket that listens there serves it."""
    return TCPStore(
        address,
        port,
        size,
        is_master=listens_by is not None,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listens_by,
    )


def gloo_times(store: Store, rank: int, size: int, *, interface: str, timeout_s: float) -> Times:
    """Over one interface; RuntimeError where there is no way over it. Collective."""
    gloo: Any = dist.ProcessGroupGloo  # whose options no type says
    options = gloo._Options()
    options._devices = [gloo.create_device(interface=interface)]
    options._timeout = timedelta(seconds=timeout_s)
    group = gloo(PrefixStore(interface, store), rank, size, options)
    small, large = torch.zeros(_SMALL), torch.zeros(_LARGE_BYTES // 4)
    return _times(lambda tensor: group.allreduce([tensor]).wait(), small, large)


def nccl_times(store: Store, rank: int, size: int, *, timeout_s: float) -> Times:
    """Between the GPUs of this machine, one to a rank. Collective."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    own = PrefixStore("nccl", store)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("nccl", store=own, rank=rank, world_size=size, timeout=timeout, device_id=device)

    def reduce(tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)
        torch.cuda.synchronize()

    small, large = torch.zeros(_SMALL, device=device), torch.zeros(_LARGE_BYTES // 4, device=device)
    found = _times(reduce, small, large)
    dist.destroy_process_group()
    return found


def nccl_version() -> str:
    """2.28.9; "" in a build without it."""
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError, ImportError):
        return ""


def _times(reduce: Callable[[torch.Tensor], object], small: torch.Tensor, large: torch.Tensor) -> Times:
    """Medians, after one of each that opens the connections."""
    reduce(small)
    reduce(large)
    latency_s = median(_seconds(reduce, small) for _ in range(_SMALL_TIMES))
    large_s = median(_seconds(reduce, large) for _ in range(_LARGE_TIMES))
    return Times(latency_s * 1e6, _LARGE_BYTES / large_s / 1e9)


def _seconds(reduce: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> float:
    start = time.perf_counter()
    reduce(tensor)
    return time.perf_counter() - start
