"""The moving average's formula, and its place in evaluations."""

import pytest
import torch
from torch import nn

from dist_trainer.training.ema import MovingAverage


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average, expected = MovingAverage(model, 0.9), 1.0
    for value in (2.0, -1.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        expected = 0.9 * expected + 0.1 * value
    assert average.state_dict()["weight"].tolist() == [[pytest.approx(expected)] * 2]


def test_the_model_holds_the_average_inside_the_block_alone() -> None:
    model = nn.Linear(2, 2).to(memory_format=torch.preserve_format)
    average = MovingAverage(model, 0.5)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update()
    with pytest.raises(KeyError), average.in_place():
        torch.testing.assert_close(model.weight.detach(), first + 0.5)
        raise KeyError
    torch.testing.assert_close(model.weight.detach(), first + 1.0)
    torch.testing.assert_close(average.state_dict()["weight"], first + 0.5)


def test_frozen_parameters_are_left_out_and_a_state_comes_back() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = MovingAverage(model, 0.5)
    assert set(average.state_dict()) == {"weight"}
    average.load_state_dict({"weight": torch.full((2, 2), 7.0)})
    with average.in_place():
        assert model.weight.tolist() == [[7.0, 7.0]] * 2
