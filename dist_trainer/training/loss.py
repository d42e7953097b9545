"""Turns a loss that averages over a batch into a sum and its weight.

A mean of means is wrong when ranks have different numbers of rows, and a mean over no rows is NaN. What a mean
divides by differs: cross-entropy divides by the targets' class weights, mean squared error by elements.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_PER_TARGET = (nn.CrossEntropyLoss, nn.NLLLoss)
_PER_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


class SummedLoss:
    """A loss called as (output, target), giving its sum over the rows and the weight its mean divides by."""

    def __init__(self, function: Callable[..., Tensor], averaged: bool) -> None:
        self.function = function
        self.averaged = averaged

    def __call__(self, output: Any, target: Any) -> tuple[Tensor, Tensor | float]:
        """The sum and the weight; no rows give a zero that still has a gradient."""
        if isinstance(self.function, nn.Module) and getattr(self.function, "reduction", None) == "sum":
            return self.function(output, target), self._weight(output, target)
        rows = len(target) if hasattr(target, "__len__") else len(output)
        if rows == 0:
            return first_tensor(output).sum() * 0.0, 0.0
        value = self.function(output, target)
        if value.dim() > 0:
            return value.sum(), float(rows)
        return value * rows, float(rows)

    def _weight(self, output: Tensor, target: Tensor) -> Tensor | float:
        if isinstance(self.function, _PER_TARGET) and not target.is_floating_point():
            kept = target != self.function.ignore_index
            if self.function.weight is None:
                return kept.sum()
            return (self.function.weight[target.clamp(min=0)] * kept).sum()
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
    if isinstance(function, (*_PER_TARGET, *_PER_ELEMENT)) and reduction == "mean":
        function.reduction = "sum"
        return SummedLoss(function, averaged=True)
    return SummedLoss(function, averaged=reduction != "sum")


def first_tensor(value: Any) -> Tensor:
    """The first tensor in a nested structure; TypeError where there is none."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else value
    for part in parts:
        return first_tensor(part)
    raise TypeError(f"no tensor in {type(value).__name__}")
