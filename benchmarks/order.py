"""How soon an epoch over 10^9 samples gives its first index, in how much memory, and how fast the others follow.

    python -m benchmarks.order here 1000000000 64 700000000      one sample, as JSON

Each sample is taken in a process of its own, so nothing is warm but what its imports have loaded.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from benchmarks.compared import HERE, in_new_process, middle, ratio
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure
from dist_trainer.training.sampler import ResumableSampler

LENGTH, PEER_LENGTH = 10**9, 10**7
RANKS = (8, 64)
RESUMED_AT = 0.7  # of the epoch
PEER = "DistributedSampler, 10^7"
_BATCH = 256  # rows a rank and step: with 32 a step, not an index, is what takes the time
_READ = 16_000_000  # indices of a rank: all that there are with 64 ranks
_SAME = 1.2  # times of milliseconds are the same within this


def measure(rounds: int, *, length: int = LENGTH, peer_length: int = PEER_LENGTH) -> list[Figure]:
    """In turns: from 0, from 7 tenths, and the peer both ways at a hundredth of the length."""
    variants: dict[str, Callable[[], Sample]] = {HERE: _sample("here", length, 64, 0)}
    variants["resumed"] = _sample("here", length, 64, int(RESUMED_AT * length))
    for ranks in RANKS:
        variants[f"{ranks} ranks"] = _sample("rate", length, ranks, 0)
    variants[PEER] = _sample("peer", peer_length, 64, 0)
    variants["peer, skipping"] = _sample("peer", peer_length, 64, int(RESUMED_AT * peer_length))
    samples = in_turns(variants, rounds)

    def value(variant: str, quantity: str, scale: float = 1.0) -> float:
        return scale * middle(samples[variant], quantity)

    first, memory = "first index of an epoch over 10^9 samples", "memory for it"
    peers = {PEER: value(PEER, "first")}
    figures = [
        Figure(first, "s", value(HERE, "first"), peers, None, None, 0.1),
        Figure(
            memory, "MB", value(HERE, "memory", 1e-6), {PEER: value(PEER, "memory", 1e-6)}, None, None, 50
        ),
    ]
    for ranks in RANKS:
        what, rate = f"indices of one of {ranks} ranks, 10^9 samples", value(f"{ranks} ranks", "rate")
        figures.append(Figure(what, "indices/s", rate, {}, None, None, 5e6, at_least=True))
    skipping = {"DistributedSampler, 10^7, skipping": value("peer, skipping", "first")}
    same = ratio(samples, "first", of="resumed", to=HERE)
    resumed = "first index of a resume at 7 x 10^8, to that from 0"
    return [*figures, Figure(resumed, "s", value("resumed", "first"), skipping, None, same, _SAME)]


def _sample(kind: str, length: int, ranks: int, start: int) -> Callable[[], Sample]:
    return lambda: in_new_process("benchmarks.order", kind, length, ranks, start)


def first_index(make: Callable[[], Iterator[Any]]) -> Sample:
    """Seconds until an order that is made now gives an index, and by how much memory rose meanwhile (at most)."""
    before = _memory_bytes("VmRSS")
    began = time.perf_counter()
    next(make())
    passed = time.perf_counter() - began
    return {"first": passed, "memory": float(max(_memory_bytes("VmHWM") - before, 0))}


def here(length: int, ranks: int, start: int) -> Sample:
    """This project's, resumed at a sample of the epoch: from the state that a checkpoint holds."""

    def make() -> Iterator[int]:
        sampler = _sampler(length, ranks)
        batch = sampler.global_batch_size
        sampler.load_state_dict({"epoch": 0, "position": start // batch * batch})
        return iter(sampler)

    return first_index(make)


def peer(length: int, ranks: int, start: int) -> Sample:
    """torch's, which knows no way into an epoch but through it."""

    def make() -> Iterator[int]:
        sampler: DistributedSampler[int] = DistributedSampler(_rows(length), num_replicas=ranks, rank=0)
        return islice(iter(sampler), start // ranks, None)

    return first_index(make)


def rate(length: int, ranks: int, start: int) -> Sample:
    """Indices a second of one rank, as the Trainer asks for them: a step's after another."""
    sampler = _sampler(length, ranks)
    wanted, count, step = min(_READ, length // ranks), 0, 0
    began = time.perf_counter()
    while count < wanted:
        count += sum(len(rows.indices) for rows in sampler.rows(step))
        step += 1
    return {"rate": count / (time.perf_counter() - began)}


def _sampler(length: int, ranks: int) -> ResumableSampler:
    batch = _BATCH * ranks
    return ResumableSampler(_rows(length), global_batch_size=batch, rank=0, world_size=ranks)


def _rows(length: int) -> Any:
    """A data set of which only the length counts."""
    return range(length)


def _memory_bytes(name: str) -> int:
    """Of this program alone: what getrusage calls its maximum begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


KINDS = {"here": here, "peer": peer, "rate": rate}

if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    print(json.dumps(KINDS[kind](*map(int, numbers))))
