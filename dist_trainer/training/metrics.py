"""Metrics as sums and counts, so that any split of the rows over ranks gives the same value."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dist_trainer.errors import ConfigError


@runtime_checkable
class Metric(Protocol):
    """Two pure functions: what to add up over rows, and the value of the total."""

    def measure(self, output: Any, target: Any) -> Tensor:
        """A 1-D float64 vector of sums over the batch's rows, of the same length for every batch."""

    def compute(self, sums: Tensor) -> float:
        """The metric of the added-up vector."""


def _ratio(sums: Tensor) -> float:
    total, count = sums.tolist()
    return total / count if count else math.nan


class Accuracy:
    """The plain share of rows that are right; for class-averaged accuracy use another metric.

    Output: (rows, classes) scores with integer targets (rows,), or (rows,) / (rows, 1) logits of the positive
    class with 0/1 targets (`threshold` is on the logit; 0.5 for a model that ends in a sigmoid).
    """

    def __init__(self, top_k: int = 1, threshold: float = 0.0) -> None:
        self.top_k = top_k
        self.threshold = threshold

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """[right, rows]."""
        if output.dim() == target.dim() + 1 and output.shape[1] > 1:
            best = output.topk(self.top_k, dim=1).indices
            right = (best == target.unsqueeze(1)).any(dim=1)
        else:
            right = (output > self.threshold).flatten() == (target > 0.5).flatten()
        return torch.stack([right.sum(), torch.tensor(right.numel(), device=right.device)]).double()

    def compute(self, sums: Tensor) -> float:
        """Right over rows."""
        return _ratio(sums)


class MeanSquaredError:
    """The mean over elements of the squared difference."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """[sum of squares, elements]."""
        difference = output.double() - target.double().reshape(output.shape)
        return torch.stack(
            [difference.square().sum().cpu(), torch.tensor(float(difference.numel())).double()]
        )

    def compute(self, sums: Tensor) -> float:
        """Sum of squares over elements."""
        return _ratio(sums)


class MeanAbsoluteError:
    """The mean over elements of the absolute difference."""

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """[sum of absolute differences, elements]."""
        difference = output.double() - target.double().reshape(output.shape)
        return torch.stack([difference.abs().sum().cpu(), torch.tensor(float(difference.numel())).double()])

    def compute(self, sums: Tensor) -> float:
        """Sum over elements."""
        return _ratio(sums)


class FromTorchmetrics:
    """A torchmetrics metric whose states all add up; others (lists of samples) are refused."""

    def __init__(self, metric: Any) -> None:
        kinds = {name: getattr(kind, "__name__", kind) for name, kind in metric._reductions.items()}
        if any(kind != "dim_zero_sum" for kind in kinds.values()):
            raise ConfigError(
                f"metrics: {type(metric).__name__} keeps states that do not add up over ranks ({kinds}); "
                "use a metric of sums and counts, or write one with measure and compute"
            )
        self._metric = metric
        self._names = list(kinds)

    def measure(self, output: Any, target: Any) -> Tensor:
        """The metric's states after this batch alone, flattened."""
        if isinstance(output, Tensor):
            self._metric.to(output.device)
        self._metric.reset()
        if len(target):
            self._metric.update(output, target)
        states = [getattr(self._metric, name).double().flatten().cpu() for name in self._names]
        return torch.cat(states)

    def compute(self, sums: Tensor) -> float:
        """The metric's own formula on the summed states."""
        self._metric.reset()
        start = 0
        for name in self._names:
            state = getattr(self._metric, name)
            part = sums[start : start + state.numel()]
            setattr(self._metric, name, part.reshape(state.shape).to(state.dtype))
            start += state.numel()
        self._metric._update_count = 1
        return float(self._metric.compute())


def as_metrics(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics by name; raises ConfigError for an object that is none."""
    result: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if name in ("loss", "bad_rows"):
            raise ConfigError(f"metrics.{name}: an evaluation has a value of that name; choose another")
        if isinstance(metric, Metric) and not hasattr(metric, "_reductions"):
            result[name] = metric
        elif hasattr(metric, "_reductions"):
            result[name] = FromTorchmetrics(metric)
        else:
            raise ConfigError(
                f"metrics.{name}: {type(metric).__name__} has no measure(output, target) and compute(sums)"
            )
    return result
