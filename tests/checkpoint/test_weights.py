"""Weights made elsewhere come into a model by name and shape, whatever stands before their names in the file."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dist_trainer.checkpoint.weights import load_weights, start_from
from dist_trainer.errors import ConfigError, UsageError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(net().state_dict())


def assert_started_from(path: Path, trained: Mapping[str, Tensor]) -> None:
    model = net()
    start_from(model, path)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> "OrderedDict[str, Tensor]":
    return OrderedDict((prefix + name, value) for name, value in state.items())


def test_a_checkpoint_of_lightning_comes_in_with_one_setting(
    tmp_path: Path, trained: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout is what lightning 2.6 writes; tests/test_coming_from.py brings in a real one."""
    path = tmp_path / "last.ckpt"
    content = {
        "epoch": 2,
        "global_step": 16,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": prefixed("model.", trained) | {"loss.weight": torch.ones(3)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "current_score": None}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(16.0)}}, "param_groups": [{"lr": 0.01}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"hidden": 16},
    }
    torch.save(content, path)
    assert_started_from(path, trained)
    assert capsys.readouterr().out == (
        f"model.weights: 9 of 9 tensors from {path}, where their names begin with model.\n"
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.encoder._orig_mod."])
def test_whatever_stands_before_the_names_is_left_out(
    tmp_path: Path, trained: dict[str, Tensor], prefix: str
) -> None:
    torch.save(prefixed(prefix, trained), tmp_path / "theirs.bin")
    assert_started_from(tmp_path / "theirs.bin", trained)


def test_a_prefix_is_left_out_where_the_head_is_another(
    tmp_path: Path, trained: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    other = trained | {"3.weight": torch.ones(5, 8), "3.bias": torch.ones(5)}
    torch.save(prefixed("model.", other), tmp_path / "theirs.ckpt")
    model = net()
    start_from(model, tmp_path / "theirs.ckpt")
    assert torch.equal(model[0].weight, trained["0.weight"])
    assert "7 of 9 tensors" in (said := capsys.readouterr().out)
    assert said.endswith(
        "left as they are, of another shape: 3.weight (5x8 in the file, 3x8 in the model), 3.bias (5 in the file, "
        "3 in the model)\n"
    )


def test_two_copies_of_the_model_in_one_file_are_refused(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.save(prefixed("model.", trained) | prefixed("teacher.", trained), tmp_path / "both.ckpt")
    with pytest.raises(
        ConfigError, match=r"model's tensors 2 times, named model\. and teacher\.; save the ones"
    ):
        start_from(net(), tmp_path / "both.ckpt")


def test_a_file_of_which_nothing_fits_is_refused_with_names_of_both(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"the file has conv\.weight, \.\.\., the model 0\.weight, 0\.bias"):
        start_from(net(), tmp_path / "other.pt")


@pytest.mark.parametrize(
    "hyper_parameters", [partial(print, "run"), net()], ids=["a function", "a whole module"]
)
def test_a_checkpoint_that_holds_objects_is_not_unpickled_and_the_way_out_is_said(
    tmp_path: Path, trained: dict[str, Tensor], hyper_parameters: Callable[..., object]
) -> None:
    torch.save({"state_dict": trained, "hyper_parameters": hyper_parameters}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match=r"where it was made, save the weights alone: torch\.save"):
        load_weights(tmp_path / "last.ckpt")
