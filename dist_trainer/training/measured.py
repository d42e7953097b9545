"""What DDP wraps: the task's loss of a batch, and a parameter that carries numbers in the gradients' reduction.

The gradient of `totals` is [weight, loss, asked to stop, work of each rank, data wait of each rank], where a rank
fills in its own places. So one all-reduce brings every rank the sums with the gradients: no collective of their
own, one NaN is seen by all, and each knows how long the others worked.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dist_trainer.adapters.distributed import Group
from dist_trainer.training.task import Task

_FIRST = 3  # numbers before those of each rank


class Totals(NamedTuple):
    """The numbers over all ranks. `work_s` and `data_s` are by rank and of the step before; empty for one rank."""

    weight: float
    loss: float
    asked: bool
    work_s: Sequence[float]
    data_s: Sequence[float]


class Watcher(Protocol):
    """Is told where this rank is in a step, and tells the others how long it worked."""

    def broadcasts(self) -> None:
        """DDP waits until every rank has rank 0's buffers."""

    def computes(self) -> None:
        """Nothing of the other ranks is needed until `reduces`."""

    def goes_back(self) -> None:
        """The loss is there."""

    def reduces(self) -> None:
        """This rank's gradients are there; it waits for the others'."""

    def reduced(self) -> None:
        """The backward pass and what it sent are done, or queued on a GPU."""

    def updates(self) -> None:
        """The others' gradients are there too."""

    def work(self) -> tuple[float, float]:
        """Seconds of work and of waiting for data, of the step before."""


class Measured(nn.Module):
    """The task's loss as a module. `asked()` says whether this rank is asked to stop."""

    def __init__(self, model: nn.Module, task: Task, group: Group, *, keep_own: bool) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._ranks = ranks = group.world_size if group.world_size > 1 else 0
        self._rank = group.rank
        self.totals = nn.Parameter(torch.zeros(_FIRST + 2 * ranks))
        # no buffer: DDP would overwrite it with rank 0's
        self._own_places = torch.zeros(2, 2 * ranks, device=group.device)
        if ranks:
            self._own_places[0, group.rank] = self._own_places[1, ranks + group.rank] = 1.0
        self.asked: Callable[[], object] = bool  # no
        self.watcher: Watcher | None = None
        self._is_told = False
        self.own: list[Tensor] | None = [] if keep_own else None  # one of them a micro-batch

    def begin(self) -> None:
        """The next forward pass is the first of a reduction: it tells of this rank's work, the others do not."""
        self._is_told = False

    def forward(self, data: Any, phase: str) -> tuple[Tensor, Tensor]:
        if self.watcher is not None:
            self.watcher.computes()
        total, weight = self.task.training_loss(self.model, data, phase)
        numbers = self._numbers(total.detach(), weight)
        if self.own is not None:
            self.own.append(numbers)
        if self._ranks:
            numbers = numbers * self._ranks  # DDP averages, and their sum is wanted
        return total, torch.dot(self.totals, numbers)

    def _numbers(self, total: Tensor, weight: Tensor | float) -> Tensor:
        asked, (work_s, data_s) = float(bool(self.asked())), self._own_work()
        if (
            total.device.type == "cpu"
        ):  # where a number is at hand, one tensor of them costs a fraction of many
            by_rank = [0.0] * (2 * self._ranks)
            if self._ranks:
                by_rank[self._rank], by_rank[self._ranks + self._rank] = work_s, data_s
            return torch.tensor([float(weight), float(total), asked, *by_rank], dtype=self.totals.dtype)
        weight = torch.as_tensor(weight, device=total.device).detach()
        head = torch.stack([weight.float(), total.float(), torch.full((), asked, device=total.device)])
        if not self._ranks:
            return head
        return torch.cat([head, self._own_places[0] * work_s + self._own_places[1] * data_s])

    def _own_work(self) -> tuple[float, float]:
        told, self._is_told = self._is_told, True
        return (0.0, 0.0) if told or self.watcher is None else self.watcher.work()

    def read(self, numbers: Sequence[float]) -> Totals:
        """The numbers of a reduction by their names."""
        weight, loss, asked = numbers[:_FIRST]
        middle = _FIRST + self._ranks
        return Totals(weight, loss, asked > 0, numbers[_FIRST:middle], numbers[middle:])


def as_numbers(totals: Tensor, gradients: list[Tensor]) -> tuple[list[float], float]:
    """The totals and the norm of all gradients, with one wait for a device."""
    norms = torch._foreach_norm(gradients) if gradients else [totals.new_zeros(())]
    if totals.device.type == "cpu":  # numbers are at hand: no need to put them together first
        return totals.tolist(), math.hypot(*(float(norm) for norm in norms))
    norm = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
    *numbers, of_all = torch.cat([totals, norm.reshape(1)]).tolist()
    return numbers, of_all
