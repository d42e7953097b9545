"""Settings given in Python, and the run that goes with them."""

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config.schema import Settings, TrainConfig
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.training.settings import make_settings, open_or_create


def test_words_lie_over_dotted_keys_and_leave_them_alone() -> None:
    given: dict[str, Any] = {
        "train": {"clip_grad_norm": 1.0},
        "train.precision": "bf16",
        "ddp.bucket_cap_mb": 2.0,
    }
    settings = make_settings(given, {"epochs": 3, "name": "try", "global_batch_size": 8})
    assert settings.train == TrainConfig(epochs=3, precision="bf16", clip_grad_norm=1.0)
    assert (settings.name, settings.data.global_batch_size, settings.ddp.bucket_cap_mb) == ("try", 8, 2.0)
    assert given["train"] == {"clip_grad_norm": 1.0}


def test_settings_as_an_object_take_words_too() -> None:
    settings = make_settings(Settings(seed=3, train=TrainConfig(steps=5)), {"name": "other"})
    assert (settings.seed, settings.train.steps, settings.train.epochs) == (3, 5, None)
    assert make_settings(None, {"steps": 7}).train.epochs is None
    assert make_settings(None, {}).train.epochs == 1


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"train.epoch": 3}, {}, "train.epoch"),
        ({"train.precision": "fp8"}, {}, "train.precision"),
        ({"train.epochs": 3}, {"steps": 4}, "train.epochs and train.steps are both given"),
        ({}, {"batch": 4}, "Trainer has no argument batch; short words are name, epochs"),
        ({"ddp.static_graph": True, "train.accumulate_steps": 2}, {}, "ddp.static_graph cannot be combined"),
        ({"ddp.sync_batchnorm": True, "launch.device": "cpu"}, {}, "ddp.sync_batchnorm needs GPUs"),
        ({"train": 5, "train.epochs": 1}, {}, "train.epochs and train are both given"),
    ],
)
def test_what_is_wrong_is_named_by_its_dotted_key(
    settings: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(settings, words)


def test_a_run_is_made_once_and_refuses_settings_of_other_numbers(tmp_path: Path) -> None:
    first = open_or_create(make_settings({"train.epochs": 2}, {"name": "a"}), tmp_path)()
    again = open_or_create(
        make_settings({"train.epochs": 4, "data.num_workers": 1}, {"name": "a"}), tmp_path
    )()
    assert first.info().run_id == again.info().run_id
    with pytest.raises(UsageError, match=r"run a in .* was begun with other settings.*\n.*seed"):
        open_or_create(make_settings({"seed": 1}, {"name": "a"}), tmp_path)()


def test_an_object_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"data\.collate: no setting in Python; give the object to Trainer"):
        make_settings({"data.collate": {"target": "mine.collate"}}, {})
