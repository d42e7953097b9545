"""Turns a loss that averages over a batch into a sum and its weight.

A mean of means is wrong when ranks have different numbers of rows, and a mean over no rows is NaN. What a mean
divides by differs: cross-entropy divides by the targets' class weights, mean squared error by elements.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_trainer.errors import DataError

PER_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_PER_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


class SummedLoss:
    """A loss called as (output, target), giving its sum over the rows and the weight its mean divides by."""

    def __init__(self, function: Callable[..., Tensor], averaged: bool) -> None:
        self.function = function
        self.averaged = averaged

    def __call__(self, output: Any, target: Any) -> tuple[Tensor, Tensor | float]:
        """The sum and the weight; no rows give a zero that still has a gradient."""
        if isinstance(self.function, _PER_ELEMENT) and output.shape != target.shape:
            raise DataError(
                f"{type(self.function).__name__} compares element by element: the model's output has the shape "
                f"{tuple(output.shape)} and the target {tuple(target.shape)}; give them the same"
            )
        if isinstance(self.function, nn.Module) and getattr(self.function, "reduction", None) == "sum":
            return self.function(output, target), self._weight(output, target)
        rows = len(target) if hasattr(target, "__len__") else len(output)
        if rows == 0:
            # every output takes part: a head without a gradient would leave DDP waiting
            return torch.stack([part.sum() for part in tensors(output)]).sum() * 0.0, 0.0
        value = self.function(output, target)
        if value.dim() > 0:
            return value.sum(), float(rows)
        return value * rows, float(rows)

    def _weight(self, output: Tensor, target: Tensor) -> Tensor | float:
        if isinstance(self.function, PER_CLASS) and target.is_floating_point():
            return float(target.numel() // target.shape[1]) if len(target) else 0.0  # shares of the classes
        if isinstance(self.function, PER_CLASS):
            ignored = self.function.ignore_index
            if (
                self.function.weight is None and target.device.type == "cpu"
            ):  # a fifth of what torch's sum takes
                return float(np.count_nonzero(target.numpy() != ignored))
            kept = target != ignored
            if self.function.weight is None:
                return kept.sum()
            return (self.function.weight[torch.where(kept, target, 0)] * kept).sum()
        if isinstance(self.function, _PER_ELEMENT):
            return float(output.numel())
        return float(len(target))


def summed(function: Callable[..., Tensor]) -> SummedLoss:
    """The loss as a sum and a weight.

    A torch loss module that averages is switched to summing, with the weight its own mean would divide by.
    One that was asked to sum keeps its meaning: the gradient is the sum over the global batch. Any other
    function is taken to average over rows (a number) or to give one value a row.
    """
    reduction = getattr(function, "reduction", None)
    if isinstance(function, (*PER_CLASS, *_PER_ELEMENT)) and reduction == "mean":
        summing = copy.deepcopy(function)  # the caller's own goes on averaging
        summing.reduction = "sum"
        return SummedLoss(summing, averaged=True)
    return SummedLoss(function, averaged=reduction != "sum")


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a nested structure."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)
