"""What differs between two configurations, and what of it needs the user's word."""

from typing import Any

import pytest

from dist_trainer.config.changes import changes, describe, unaccepted
from dist_trainer.config.schema import Config

BASE: dict[str, Any] = {
    "name": "run",
    "model": {"target": "my.Net", "hidden": 3},
    "data": {"train": {"target": "my.Data"}, "val": {"target": "my.Data"}},
    "loss": {"target": "my.loss"},
    "optimizer": {"target": "torch.optim.SGD", "lr": 0.1},
    "train": {"epochs": 3},
}


def changed(**sections: Any) -> Config:
    return Config.model_validate({**BASE, **sections})


def test_the_same_configuration_has_no_changes() -> None:
    assert changes(changed(), changed()) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"epochs": 4}},
        {"train": {"epochs": 3, "eval_every_steps": 10, "eval_every_epochs": None}},
        {"train": {"epochs": 3, "early_stopping": {"patience": 2}}},
        {"train": {"epochs": 3, "profile": {"steps": [1, 2]}}},
        {"tracking": {"uri": None, "experiment": "other"}},
        {"launch": {"workers_per_node": 3, "env": {"A": "1"}}},
        {"slurm": {"nodes": 2, "options": {"mem": "4G"}}},
        {"data": {**BASE["data"], "num_workers": 4, "eval_batch_size": 7}},
        {"checkpoint": {"every_steps": 10, "every_minutes": None, "keep_last": 9, "keep_best": {}}},
        {"checkpoint": {"keep_every_steps": 100, "max_staleness_minutes": 5}},
    ],
)
def test_changes_that_leave_the_numbers_alone_need_no_word(sections: dict[str, Any]) -> None:
    found = changes(changed(), changed(**sections))
    assert found
    assert unaccepted(found, []) == []


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"train": {"epochs": 2}}, "train.epochs"),
        ({"train": {"epochs": 3, "precision": "bf16"}}, "train.precision"),
        ({"optimizer": {"target": "torch.optim.SGD", "lr": 0.2}}, "optimizer.lr"),
        ({"optimizer": {"target": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}}, "optimizer.momentum"),
        ({"model": {"target": "my.Net"}}, "model.hidden"),
        ({"seed": 1}, "seed"),
        ({"data": {**BASE["data"], "global_batch_size": 8}}, "data.global_batch_size"),
        ({"checkpoint": {"folder": "s3://bucket/x"}}, "checkpoint.folder"),
        ({"ddp": {"compress": "fp16"}}, "ddp.compress"),
        ({"metrics": {"accuracy": {"target": "my.Metric"}}}, "metrics.accuracy.target"),
    ],
)
def test_a_change_that_alters_the_numbers_needs_its_key_or_its_section(
    sections: dict[str, Any], key: str
) -> None:
    found = changes(changed(), changed(**sections))
    left = unaccepted(found, [])
    assert key in [change.key for change in left]
    assert unaccepted(found, [change.key for change in left]) == []
    assert unaccepted(found, [key.split(".")[0]]) == []
    assert unaccepted(found, [key[:-1]]) == left


def test_a_difference_reads_as_one_line_for_each_key() -> None:
    new = changed(
        optimizer={"target": "torch.optim.SGD", "lr": 0.2, "nesterov": True, "groups": [{"match": "a*"}]},
        model={"target": "my.Net", "hidden": "on"},
    )
    assert describe(changes(changed(), new)).splitlines() == [
        "  model.hidden: 3 -> 'on'",
        "  optimizer.groups: [] -> [{'match': 'a*', 'lr_scale': 1.0}]",
        "  optimizer.lr: 0.1 -> 0.2",
        "  optimizer.nesterov: (not set) -> true",
    ]


def test_steps_for_epochs_needs_a_word() -> None:
    found = changes(changed(), changed(train={"steps": 1000}))
    assert [change.key for change in unaccepted(found, [])] == ["train.steps", "train.epochs"]
