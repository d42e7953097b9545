"""What every program trains: model, data and optimizer of a task, the same for all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.peers import linear
from benchmarks.peers.protocol import Asked

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Work:
    """`batch_size` is a rank's."""

    model: nn.Module
    dataset: Dataset[Any]
    batch_size: int
    workers: int

    def optimizer(self, model: nn.Module) -> SGD:
        """Plain SGD."""
        return SGD(model.parameters(), lr=LEARNING_RATE)

    def loader(self, *, sampler: Sampler[int] | None = None, shuffle: bool = False) -> DataLoader[Any]:
        """Batches, with the loader's defaults for everything else."""
        options = {"batch_size": self.batch_size, "num_workers": self.workers}
        return DataLoader(self.dataset, sampler=sampler, shuffle=shuffle, **options)  # type: ignore[arg-type]


def work(asked: Asked) -> Work:
    """The parts of a task, made here so that only the images' programs import what images need."""
    torch.manual_seed(1)
    if asked.task == "linear":
        return Work(linear.model(), linear.dataset(), linear.BATCH_SIZE, asked.workers)
    from benchmarks.peers import images
    from dist_trainer.models import SimpleCNN

    assert asked.images is not None, f"{asked.task} needs --images"
    if asked.task == "evaluate":
        return Work(SimpleCNN(), images.tensors(asked.images), images.EVAL_BATCH_SIZE, asked.workers)
    pictures = images.pictures(asked.images, augmented=asked.task == "augmented")
    return Work(SimpleCNN(), pictures, images.BATCH_SIZE, asked.workers)


class TakesEpoch(Protocol):
    """A sampler or loader that shuffles by epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Before each epoch."""


def batches(loader: Iterable[Any], shuffled_by: TakesEpoch, *, steps: int) -> Iterator[Any]:
    """So many batches, epoch after epoch."""

    def forever() -> Iterator[Any]:
        for epoch in count():
            shuffled_by.set_epoch(epoch)
            yield from loader

    return islice(forever(), steps)
