"""Layers are merged left to right; single values come last."""

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config.load import Loaded, dump_config, load_config
from dist_trainer.config.schema import TrainConfig
from dist_trainer.errors import ConfigError

BASE = """\
name: base
model: {target: my.Net, hidden: 3, blocks: [{target: my.Block, width: 1}, {target: my.Block, width: 2}]}
data: {train: {target: my.Data, path: a.npz}, global_batch_size: 64}
loss: {target: my.loss}
optimizer:
  target: torch.optim.SGD
  lr: 0.1
  groups:
  - {match: "a*", lr_scale: 2}
  - {match: "b*", lr_scale: 3}
scheduler: {target: my.Scheduler, gamma: 0.1, warmup_steps: 5}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def load(*layers: str, overrides: tuple[str, ...] = ()) -> Loaded:
        paths = []
        for number, text in enumerate((BASE, *layers)):
            paths.append(f"{number}.yaml")
            Path(paths[-1]).write_text(text)
        return load_config(paths, overrides)

    return load


def test_sections_are_merged_deep_and_later_layers_win(load: Any) -> None:
    config = load("data: {train: {path: b.npz}}", "data: {global_batch_size: 8}").config
    assert config.data.train.arguments == {"path": "b.npz"}
    assert config.data.global_batch_size == 8


def test_lists_are_replaced(load: Any) -> None:
    assert [
        group.match for group in load('optimizer: {groups: [{match: "c*"}]}').config.optimizer.groups
    ] == ["c*"]


def test_an_empty_layer_changes_nothing(load: Any) -> None:
    assert load("# nothing\n").config == load().config


def test_a_new_target_drops_the_old_ones_arguments(load: Any) -> None:
    config = load("model: {target: my.Other, size: 1}").config
    assert config.model.arguments == {"size": 1}
    assert load("scheduler: {target: my.Other}").config.scheduler.warmup_steps == 0


def test_the_same_target_keeps_its_arguments(load: Any) -> None:
    assert load("model: {target: my.Net, hidden: 4}").config.model.arguments["hidden"] == 4
    assert "blocks" in load("model: {target: my.Net, hidden: 4}").config.model.arguments


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_target_and_its_arguments_come_in_any_order_on_the_command_line(load: Any, order: int) -> None:
    overrides = ("model.target=my.Other", "model.size=1")[::order]
    assert load(overrides=overrides).config.model.arguments == {"size": 1}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.hidden=3e-4", 3e-4),
        ("model.hidden=[1, two]", [1, "two"]),
        ("model.hidden=null", None),
        ("model.hidden=", None),
        ("model.hidden=on", "on"),
        ("model.hidden='3'", "3"),
        ("model.hidden=a=b", "a=b"),
        ("model.hidden={target: my.X, y: 1}", {"target": "my.X", "y": 1}),
        ("model.hidden.deep.deeper=1", {"deep": {"deeper": 1}}),
        ("model.hidden=sqlite:///x.db", "sqlite:///x.db"),
    ],
)
def test_single_values_are_typed(load: Any, override: str, value: Any) -> None:
    found = load(overrides=(override,)).config.model.arguments["hidden"]
    assert found == value
    assert type(found) is type(value)


def test_a_later_single_value_wins(load: Any) -> None:
    assert load(overrides=("seed=1", "seed=2")).config.seed == 2
    assert load(overrides=("model.a.b=1", "model.a=2")).config.model.arguments["a"] == 2
    assert load(overrides=("model.a=2", "model.a.b=1")).config.model.arguments["a"] == {"b": 1}


def test_one_item_of_a_list_can_be_set(load: Any) -> None:
    overrides = ("optimizer.groups.1.lr_scale=7", "model.blocks.0.width=9")
    config = load(overrides=overrides).config
    assert [group.lr_scale for group in config.optimizer.groups] == [2, 7]
    assert [block["width"] for block in config.model.arguments["blocks"]] == [9, 2]


def test_a_section_can_be_switched_off(load: Any) -> None:
    assert load(overrides=("scheduler=null",)).config.scheduler is None


def test_every_value_knows_its_place(load: Any) -> None:
    loaded = load(
        "data: {train: {path: b.npz}}\n\nseed: 3\n",
        overrides=("train.epochs=2", "optimizer.groups.0.lr_scale=5"),
    )
    places = {
        "optimizer.lr": "0.yaml:7",
        "optimizer.groups.1.lr_scale": "0.yaml:10",
        "optimizer.groups.0.lr_scale": "command line",
        "optimizer.groups.0.match": "0.yaml:9",
        "optimizer.momentum": "0.yaml:5",
        "data.train.path": "1.yaml:1",
        "data.global_batch_size": "0.yaml:3",
        "seed": "1.yaml:3",
        "train.epochs": "command line",
        "ddp.compress": "0.yaml, 1.yaml",
    }
    assert {key: loaded.locate(key) for key in places} == places


def test_problems_of_others_get_their_places(load: Any) -> None:
    error = load().error([("optimizer.lr", "is too large"), ("model.blocks.1.width", "is odd")])
    assert str(error) == "0.yaml:7: optimizer.lr is too large\n0.yaml:2: model.blocks.1.width is odd"


def test_a_wrong_value_is_placed_in_the_layer_it_comes_from(load: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load("\ndata: {global_batch_size: 0}")
    assert str(caught.value) == "1.yaml:2: data.global_batch_size must be >= 1, got 0"


def test_the_dump_names_every_default(load: Any) -> None:
    text = dump_config(load().config)
    for line in ("epochs: 1", "bucket_cap_mb: 25.0", "keep_last: 2", "timeout_s: 120.0", "nodes: 1"):
        assert line in text


@pytest.mark.parametrize(
    ("train", "epochs"),
    [({}, 1), ({"epochs": None}, 1), ({"steps": 5}, None), ({"steps": 5, "epochs": None}, None)],
)
def test_one_epoch_is_the_default_where_steps_are_not_given(
    train: dict[str, Any], epochs: int | None
) -> None:
    config = TrainConfig.model_validate(train)
    assert config.epochs == epochs
    assert "epochs" not in config.model_fields_set  # so that settings can be laid over one another
