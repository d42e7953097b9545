"""Metrics add up over any split of the rows, batches of none included."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_trainer.errors import ConfigError
from dist_trainer.training.metrics import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    as_metrics,
)

OUTPUT = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 5, (11,), generator=torch.Generator().manual_seed(1))


def over_parts(metric: Metric, output: Tensor, target: Tensor, cuts: tuple[int, ...]) -> float:
    edges = [0, *cuts, len(target)]
    parts = [metric.measure(output[a:b], target[a:b]) for a, b in pairwise(edges)]
    assert {part.dtype for part in parts} == {torch.float64}
    return metric.compute(torch.stack(parts).sum(0))


@pytest.mark.parametrize(
    ("metric", "output", "target", "expected"),
    [
        (Accuracy(), OUTPUT, TARGET, float((OUTPUT.argmax(1) == TARGET).double().mean())),
        (Accuracy(top_k=5), OUTPUT, TARGET, 1.0),
        (Accuracy(), OUTPUT[:, :1], (TARGET > 2).float(), None),
        (Accuracy(threshold=0.5), OUTPUT[:, 0].sigmoid(), (TARGET > 2).float(), None),
        (MeanSquaredError(), OUTPUT, OUTPUT + 2, 4.0),
        (MeanSquaredError(), OUTPUT[:, :1], OUTPUT[:, 0] + 2, 4.0),
        (MeanAbsoluteError(), OUTPUT, OUTPUT - 3, 3.0),
    ],
)
def test_any_split_gives_the_value_of_the_whole(
    metric: Metric, output: Tensor, target: Tensor, expected: float | None
) -> None:
    if expected is None:
        expected = float(((OUTPUT[:, 0] > 0) == (TARGET > 2)).double().mean())
    assert over_parts(metric, output, target, ()) == pytest.approx(expected)
    assert over_parts(metric, output, target, (0, 4, 4, 9)) == pytest.approx(expected)


def test_accuracy_is_the_plain_share_of_rows_on_unbalanced_data() -> None:
    target = torch.tensor([0] * 9 + [1])
    assert over_parts(Accuracy(), torch.tensor([[1.0, 0.0]]).repeat(10, 1), target, (3,)) == 0.9


def test_accuracy_counts_positions_of_a_map() -> None:
    output = torch.randn(4, 3, 2, 2)
    assert over_parts(Accuracy(), output, output.argmax(1), (1,)) == 1.0


def test_no_rows_at_all_are_nan() -> None:
    assert math.isnan(Accuracy().compute(torch.zeros(2)))


class Summed:
    """What a torchmetrics metric of sums looks like from outside."""

    def __init__(self, reduction: str = "dim_zero_sum") -> None:
        def reduce() -> None: ...

        reduce.__name__ = reduction
        self._reductions = {"right": reduce, "seen": reduce}
        self.reset()

    def reset(self) -> None:
        self.right, self.seen, self._update_count = torch.zeros(2), torch.tensor(0), 0

    def to(self, device: Any) -> "Summed":
        return self

    def update(self, output: Tensor, target: Tensor) -> None:
        self.right = torch.bincount(target[output.argmax(1) == target], minlength=5)[:2].float()
        self.seen = torch.tensor(len(target))

    def compute(self) -> Tensor:
        return self.right.sum() / self.seen


def test_a_metric_whose_states_add_up_is_taken_from_torchmetrics() -> None:
    metric = as_metrics({"some": Summed()})["some"]
    assert over_parts(metric, OUTPUT, TARGET, (0, 4)) == pytest.approx(over_parts(metric, OUTPUT, TARGET, ()))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"some": Summed("dim_zero_cat")}, "Summed keeps states that do not add up"),
        ({"some": 3}, r"metrics.some: int has no measure\(output, target\)"),
        ({"loss": Accuracy()}, r"metrics.loss: an evaluation has a value of that name"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_metrics(metrics)
