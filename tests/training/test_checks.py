"""What cannot work together is one error before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_trainer.config.schema import Settings
from dist_trainer.errors import ConfigError
from dist_trainer.training.checks import check_model, check_optimizers, check_watched
from dist_trainer.training.task import Supervised, Task
from dist_trainer.training.trainer import Scheduler, Trainer
from tests.ranks import run_ranks
from tests.training.small import CLASSES, FEATURES, message_of, net, rows, sgd, trainer

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")


class Norm(nn.Module):
    """A batch norm over rows alone, or over four values of each row too."""

    def __init__(self, spread: int) -> None:
        super().__init__()
        self.spread = spread
        self.norm, self.layer = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        wide = inputs.unsqueeze(2).repeat(1, 1, self.spread)
        return self.layer(self.norm(wide).mean(2))


def start_with_norms(folder: str) -> list[str]:
    found = []
    ways: list[tuple[int, int, dict[str, Any]]] = [
        (1, 23, {"data.global_batch_size": 7}),  # the epoch's last step has 2 rows: one each
        (1, 23, {"data.global_batch_size": 7, "data.drop_last": True}),
        (4, 23, {"data.global_batch_size": 7}),  # four values a row are enough
        (1, 24, {"data.global_batch_size": 6, "train.accumulate_steps": 3}),
        (1, 23, {"data.global_batch_size": 7, "train.freeze": ["norm.*"]}),
        (4, 3, {"data.global_batch_size": 3}),  # no rank has a batch of more than two rows to look at
    ]
    for number, (spread, length, settings) in enumerate(ways):
        fit = trainer(folder, f"norm-{number}", settings, model=Norm(spread), train=rows(length))
        found.append(message_of(fit.fit))
        if found[-1]:
            torch.distributed.destroy_process_group()
    return found


def test_a_batch_norm_that_will_meet_one_row_is_refused_with_a_remedy(tmp_path: Path) -> None:
    for found in run_ranks(2, start_with_norms, str(tmp_path)):
        assert (
            "data.global_batch_size 7 leaves a micro-batch of one row in step 3 of each epoch (2 ranks"
            in found[0]
        )
        assert "set data.drop_last=true" in found[0]
        assert "leaves a micro-batch of one row in step 0" in found[3]
        assert [found[number] for number in (1, 2, 4, 5)] == [""] * 4


def refused(check: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        check()
    return str(error.value)


def test_what_a_model_cannot_do_is_said() -> None:
    task = Supervised(nn.CrossEntropyLoss())
    settings = Settings.model_validate({"ddp": {"sync_batchnorm": True}})
    assert "SyncBatchNorm for the CPU" in refused(lambda: check_model(net(), task, settings, CPU))
    frozen = net().requires_grad_(False)
    assert "no parameter that can be trained" in refused(lambda: check_model(frozen, task, Settings(), CPU))
    sparse = nn.Sequential(nn.Linear(1, 1), nn.Embedding(3, 2, sparse=True))
    assert "the model's 1 makes sparse gradients" in refused(
        lambda: check_model(sparse, task, Settings(), CPU)
    )
    learned = Supervised(nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2]))  # type: ignore[arg-type]
    assert "has parameters of its own" in refused(lambda: check_model(net(), learned, Settings(), CPU))
    check_model(net(), task, Settings(), CPU)


def test_optimizers_that_would_train_something_else_are_refused() -> None:
    model = net()
    check_optimizers(model, {"main": sgd(model)}, Settings())
    assert "not the model's" in refused(lambda: check_optimizers(model, {"main": sgd(net())}, Settings()))
    assert "for 'main' it gave int" in refused(lambda: check_optimizers(model, {"main": 3}, Settings()))  # type: ignore[dict-item]
    static = Settings.model_validate({"ddp": {"static_graph": True}})
    both = {"a": sgd(model), "b": sgd(model)}
    assert "the task has 2 optimizers" in refused(lambda: check_optimizers(model, both, static))


def test_a_watched_metric_must_be_measured() -> None:
    check_watched(["accuracy"], {"a": "val/accuracy", "b": "val/loss", "c": None}, has_val=True)
    said = refused(lambda: check_watched(["accuracy"], {"scheduler.metric": "val/acc"}, has_val=True))
    assert said == "scheduler.metric is val/acc; an evaluation gives val/accuracy, val/loss"
    assert "there is none without data.val" in refused(
        lambda: check_watched([], {"scheduler.metric": "val/loss"}, has_val=False)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either a loss, or a task"),
        ({"loss": nn.MSELoss(), "task": Task()}, "either a loss, or a task"),
        ({"loss": nn.MSELoss(), "steps": 3, "metrics": {"loss": 1}}, r"metrics.loss"),
        ({"loss": nn.MSELoss(), "stepz": 3}, "Trainer has no argument stepz"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused_when_it_is_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(net(), train=rows(), optimizer=sgd, **given)


def start_wrongly(folder: str) -> list[str]:
    plateau = Scheduler(
        lambda each, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(each), metric="val/loss"
    )
    per_epoch = Scheduler(lambda each, steps: torch.optim.lr_scheduler.CosineAnnealingLR(each, T_max=50))
    ways: list[dict[str, Any]] = [
        {"scheduler": plateau},
        {"scheduler": per_epoch, "settings": {"train.epochs": 50, "data.global_batch_size": 2}},
        {"settings": {"train.freeze": ["nothing.*"]}},
        {"settings": {"data.global_batch_size": 1}},
        {"settings": {"checkpoint.keep_best": {"metric": "val/loss"}}},
    ]
    found = []
    for number, way in enumerate(ways):
        found.append(message_of(trainer(folder, f"wrong-{number}", **way).fit))
        torch.distributed.destroy_process_group()
    return found


def test_a_start_that_cannot_work_is_refused_on_every_rank(tmp_path: Path) -> None:
    for found in run_ranks(2, start_wrongly, str(tmp_path)):
        assert all(each.startswith("ConfigError: ") for each in found)
        assert "scheduler.metric is val/loss" in found[0]
        assert "scheduler.T_max is 50" in found[1] and "stepped at every update" in found[1]
        assert "train.freeze: 'nothing.*' matches no parameter" in found[2]
        assert "data.global_batch_size must be at least the world size, 2, got 1" in found[3]
        assert "checkpoint.keep_best.metric is val/loss" in found[4]
