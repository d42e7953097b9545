"""Freezing, parameter groups and optimizers by the configuration's words."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from dist_trainer.config.schema import GroupConfig
from dist_trainer.errors import ConfigError
from dist_trainer.training.group_options import load_state
from dist_trainer.training.optimizer import (
    freeze,
    make_optimizer,
    needs_closure,
    parameter_groups,
    set_train_mode,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    model = Net()
    freeze(model, ["body.*"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    set_train_mode(model)
    assert model.head.training and not model.body[1].training
    before = model.body[1].running_mean.clone()  # type: ignore[union-attr, operator]
    model.body(torch.randn(8, 3))
    assert torch.equal(model.body[1].running_mean, before)  # type: ignore[arg-type]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"train.freeze: 'classifier.\*' matches no parameter; .*body.0.weight"
    ):
        freeze(Net(), ["body.*", "classifier.*"])
    with pytest.raises(ConfigError, match=r"optimizer.groups\[1\].match: 'haed.\*' matches no parameter"):
        parameter_groups(Net(), [GroupConfig(match="body.*"), GroupConfig(match="haed.*")], 0.1)
    with pytest.raises(ConfigError, match="leaves no parameter to train"):
        freeze(Net(), ["*"])


def test_groups_take_their_own_rate_and_options_and_the_first_match_wins() -> None:
    groups = [
        GroupConfig(match="head.*", lr_scale=10.0),
        GroupConfig.model_validate({"match": "*.bias", "weight_decay": 0.0}),
    ]
    optimizer = make_optimizer(partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5), Net(), groups, 0.01)
    shapes = [
        (group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        for group in optimizer.param_groups
    ]
    assert shapes == [
        (0.01, 0.5, [(4, 3), (4,)]),
        (pytest.approx(0.1), 0.5, [(2, 4), (2,)]),
        (0.01, 0.0, [(4,), (4,)]),
    ]


def test_frozen_parameters_are_in_no_group_and_a_scale_needs_a_rate() -> None:
    model = Net()
    freeze(model, ["body.*"])
    optimizer = make_optimizer(partial(torch.optim.SGD, lr=0.1), model, [], 0.1)
    assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == 10
    with pytest.raises(ConfigError, match=r"optimizer.groups\[0\].lr_scale needs optimizer.lr"):
        make_optimizer(torch.optim.Adagrad, Net(), [GroupConfig(match="head.*", lr_scale=2.0)], None)


def test_an_optimizer_gets_names_where_it_can_use_them() -> None:
    optimizer = make_optimizer(partial(torch.optim.SGD, lr=0.1), Net(), [], 0.1)
    assert optimizer.param_groups[0]["param_names"][0] == "body.0.weight"


class Unnamed(torch.optim.SGD):
    """Looks at its parameters as tensors, as older optimizers do."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        if any(p.dim() == 0 for p in (params if not isinstance(params[0], dict) else params[0]["params"])):
            raise ValueError("scalars are not for me")
        super().__init__(params, lr=0.1)


def test_an_optimizer_that_knows_no_names_gets_plain_parameters() -> None:
    assert isinstance(make_optimizer(Unnamed, Net(), [], None), Unnamed)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (partial(torch.optim.Muon, lr=0.1), r"optimizer Muon refuses these parameters: .*2D"),
        (partial(torch.optim.SGD, lr=-1.0), "optimizer SGD refuses these parameters: Invalid learning rate"),
    ],
)
def test_what_an_optimizer_refuses_is_said_by_its_name(factory: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimizer(factory, Net(), [], 0.1)


def test_lbfgs_alone_needs_a_closure() -> None:
    model = Net()
    assert needs_closure(torch.optim.LBFGS(model.parameters()))
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad):
        assert not needs_closure(kind(model.parameters(), lr=0.1))  # type: ignore[call-arg]


def test_a_saved_state_is_laid_out_as_the_parameter_is_now() -> None:
    """A fused kernel walks through memory, and train.channels_last may be another one than when it was saved."""
    torch.manual_seed(0)
    weight, gradients = torch.randn(4, 3, 3, 3), torch.randn(2, 4, 3, 3, 3)
    usual = nn.Parameter(weight.clone())
    other = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    optimizers = [torch.optim.Adam([each], lr=0.1, fused=True) for each in (usual, other)]
    usual.grad = gradients[0].clone()
    optimizers[0].step()
    other.data.copy_(usual.data)
    state = copy.deepcopy(optimizers[0].state_dict())  # as from a file: nothing is shared
    load_state(optimizers[1], state, before=[{}], now=[{}], scheduled=())
    for parameter, optimizer in zip((usual, other), optimizers, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradients[1])
        optimizer.step()
    assert torch.allclose(usual, other)
