"""A loop written by hand as the official tutorial of DDP does it, started by torchrun."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

from benchmarks.peers.protocol import Asked, Stamps, asked, leave
from benchmarks.peers.work import Work, batches, work


def main() -> None:
    """Train, or for "evaluate" only go forward, which is the least that an evaluation takes."""
    dist.init_process_group("gloo")
    given = asked()
    stamps = Stamps()
    if given.task == "evaluate":
        forward_alone(given, work(given), stamps)
    else:
        train(given, work(given), stamps)
    if dist.get_rank() == 0:
        stamps.write(given.times)
    dist.destroy_process_group()
    leave()


def train(given: Asked, parts: Work, stamps: Stamps) -> None:
    """Every line of it is the tutorial's, but the stamp."""
    model = DistributedDataParallel(parts.model)
    optimizer = parts.optimizer(model)
    criterion = nn.CrossEntropyLoss()
    for inputs, targets in data(given, parts):
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0:
            stamps.tick()


def data(given: Asked, parts: Work) -> Iterator[Any]:
    """Batches of this rank's share; for "resident" the first of them again and again."""
    sampler: DistributedSampler[Any] = DistributedSampler(parts.dataset)
    loader = parts.loader(sampler=sampler)
    if given.task == "resident":
        return repeat(next(iter(loader)), given.steps)
    return batches(loader, sampler, steps=given.steps)


@torch.no_grad()
def forward_alone(given: Asked, parts: Work, stamps: Stamps) -> None:
    """As many forward passes as this rank's share has batches, all of them of one batch."""
    inputs, _ = next(iter(parts.loader()))
    share = len(parts.dataset) // dist.get_world_size()  # type: ignore[arg-type]
    for _ in range(given.steps):
        stamps.tick()
        for _ in range(share // parts.batch_size):
            parts.model(inputs)
        stamps.tick()


if __name__ == "__main__":
    main()
