"""Losses as sums and weights, equal to torch's own means."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_trainer.errors import DataError
from dist_trainer.training.loss import summed, tensors

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(6, 4, generator=GENERATOR)
CLASSES = torch.tensor([0, 3, 1, 1, -100, 2])
SHARES = SCORES.softmax(1)
VALUES = torch.randn(6, 4, generator=GENERATOR)
WEIGHTS = torch.tensor([0.1, 1.0, 2.0, 5.0])
MAPS = torch.randn(6, 4, 2, 2, generator=GENERATOR)
LABELS = torch.randint(0, 4, (6, 2, 2), generator=GENERATOR)

MEANS: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
    "MSE": (nn.MSELoss(), SCORES, VALUES),
    "L1": (nn.L1Loss(), SCORES, VALUES),
    "Huber": (nn.HuberLoss(), SCORES, VALUES),
    "cross-entropy": (nn.CrossEntropyLoss(), SCORES, CLASSES),
    "class weights": (nn.CrossEntropyLoss(WEIGHTS), SCORES, CLASSES),
    "smoothing": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), SCORES, CLASSES),
    "class weights and a label beyond them that is left out": (
        nn.CrossEntropyLoss(WEIGHTS, ignore_index=255),
        SCORES,
        torch.where(CLASSES < 0, 255, CLASSES),
    ),
    "ignore": (nn.CrossEntropyLoss(ignore_index=1), SCORES, CLASSES.clamp(min=0)),
    "shares": (nn.CrossEntropyLoss(WEIGHTS), SCORES, SHARES),
    "maps": (nn.CrossEntropyLoss(WEIGHTS), MAPS, LABELS),
    "maps of shares": (nn.CrossEntropyLoss(), MAPS, MAPS.softmax(1)),
    "NLL": (nn.NLLLoss(WEIGHTS), SCORES.log_softmax(1), CLASSES.clamp(min=0)),
    "BCE": (nn.BCELoss(), SHARES, (VALUES > 0).float()),
    "BCE with logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), SCORES, (VALUES > 0).float()),
    "function": (nn.functional.smooth_l1_loss, SCORES, VALUES),
    "one a row": (lambda output, target: (output - target).square().mean(1), SCORES, VALUES),
}


@pytest.mark.parametrize("name", MEANS)
def test_the_parts_of_a_batch_add_up_to_the_mean_of_the_whole(name: str) -> None:
    loss, output, target = MEANS[name]
    parts = [summed(loss)(output[cut], target[cut]) for cut in (slice(0, 1), slice(1, 6), slice(6, 6))]
    total, weight = (sum(float(part[index]) for part in parts) for index in (0, 1))
    assert total / weight == pytest.approx(float(loss(output, target).mean()), rel=1e-6)
    assert summed(loss).averaged


def test_a_loss_that_was_asked_to_sum_goes_on_summing() -> None:
    loss = nn.CrossEntropyLoss(reduction="sum")
    assert not summed(loss).averaged
    total, weight = summed(loss)(SCORES, CLASSES.clamp(min=0))
    assert float(total) == pytest.approx(float(loss(SCORES, CLASSES.clamp(min=0))))
    assert float(weight) == 6


def test_the_callers_loss_stays_as_it_was() -> None:
    loss = nn.MSELoss()
    assert summed(loss).averaged
    assert loss.reduction == "mean"
    assert summed(loss).averaged, "a second Trainer with the same loss must average too"


def test_no_rows_give_a_zero_that_every_output_has_a_gradient_of() -> None:
    one, two = (torch.randn(0, 2, requires_grad=True) for _ in range(2))
    total, weight = summed(lambda output, target: output[0].mean())({"a": one, "b": [two]}, torch.empty(0))
    total.backward()  # type: ignore[no-untyped-call]
    assert (float(total.detach()), weight) == (0.0, 0.0)
    assert one.grad is not None and two.grad is not None


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.BCEWithLogitsLoss(reduction="sum")])
def test_shapes_that_would_be_broadcast_over_rows_are_refused(loss: Any) -> None:
    with pytest.raises(DataError, match=r"shape \(6, 1\) and the target \(6,\); give them the same"):
        summed(loss)(SCORES[:, :1], VALUES[:, 0])


def test_tensors_finds_the_floating_ones_at_any_depth() -> None:
    assert len(list(tensors({"a": (SCORES, [VALUES]), "b": CLASSES, "c": "text"}))) == 2
