"""DDP's overlap of backward and all-reduce: when each bucket is full, when its sum is there, and who waits for it.

Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training, VLDB 13(12), 2020: gradients are
put into buckets in the order in which backward makes them; a full bucket's all-reduce starts while backward goes
on, one after another.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gradient:
    """One parameter's gradient: its bytes on the wire, and after which share of backward it is there."""

    size_bytes: float
    ready_share: float


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together, once the last of them is there."""

    size_bytes: float
    ready_share: float


@dataclass(frozen=True)
class Compute:
    """The parts of a step of a rank that waits for nobody, in seconds; forward and backward of all micro-batches."""

    between_s: float  # from one step to the next: waiting for data, and the loop's own work
    forward_s: float
    backward_s: float
    update_s: float  # norm, clipping, optimizer, schedule
    micro_batches: int = 1

    @property
    def total_s(self) -> float:
        """The step of a rank alone."""
        return self.between_s + self.forward_s + self.backward_s + self.update_s


@dataclass(frozen=True)
class Step:
    """A step of all ranks, in seconds: what it takes, how long its all-reduces run, what of that is waited for."""

    total_s: float
    communication_s: float
    exposed_s: float


def in_order_of_backward(sizes_bytes: Iterable[float]) -> list[Gradient]:
    """Gradients, given in the order of backward, whose times nobody measured: spread by their bytes."""
    sizes, done, found = list(sizes_bytes), 0.0, []
    for size in sizes:
        done += size
        found.append(Gradient(size, done / sum(sizes)))
    return found


def fill_buckets(
    gradients: Iterable[Gradient], *, cap_bytes: float, first_cap_bytes: float | None = None
) -> list[Bucket]:
    """A bucket is closed by the gradient that brings it to its cap; `gradients` in the order of backward.

    A smaller first bucket lets the first all-reduce start early: DDP's is 1 MiB where nobody gives it a cap.
    """
    full: list[Bucket] = []
    size_bytes = ready_share = 0.0
    for gradient in gradients:
        size_bytes += gradient.size_bytes
        ready_share = max(ready_share, gradient.ready_share)
        cap = first_cap_bytes if first_cap_bytes is not None and not full else cap_bytes
        if size_bytes >= cap:
            full.append(Bucket(size_bytes, ready_share))
            size_bytes = 0.0
    return [*full, Bucket(size_bytes, ready_share)] if size_bytes else full


def step_of(
    compute: Compute,
    buckets: Iterable[Bucket],
    all_reduce_s: Callable[[float], float],
    broadcast_s: float = 0.0,
) -> Step:
    """A step whose buckets are summed while its last micro-batch goes backward: those before it keep theirs.

    `all_reduce_s` gives seconds for bytes; `broadcast_s` is what each forward waits for buffers.
    """
    overlapped_s = compute.backward_s / compute.micro_batches
    free_at_s = communication_s = 0.0  # from the start of the last backward
    for bucket in buckets:
        seconds = all_reduce_s(bucket.size_bytes)
        communication_s += seconds
        free_at_s = max(free_at_s, bucket.ready_share * overlapped_s) + seconds
    broadcasts_s = compute.micro_batches * broadcast_s
    exposed_s = max(0.0, free_at_s - overlapped_s) + broadcasts_s
    return Step(compute.total_s + exposed_s, communication_s + broadcasts_s, exposed_s)
