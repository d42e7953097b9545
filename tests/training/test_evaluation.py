"""Evaluation: every row once at any number of ranks, nothing of training disturbed."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dist_trainer.adapters.distributed import join
from dist_trainer.config.schema import TrainConfig
from dist_trainer.errors import DataError
from dist_trainer.training.evaluation import evaluate, is_due, predict, undisturbed
from dist_trainer.training.loader import EvalLoader
from dist_trainer.training.metrics import Accuracy, MeanSquaredError
from dist_trainer.training.task import Supervised, Task
from tests.ranks import run_ranks
from tests.training.small import CLASSES, FEATURES, Watch, net, rows, trainer, vector

pytestmark = pytest.mark.timeout(120)
LENGTH = 1001


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.layer = (
            nn.BatchNorm1d(FEATURES),
            nn.Dropout(0.5),
            nn.Linear(FEATURES, CLASSES),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.drop(self.norm(inputs)))


def evaluate_and_predict(lengths: list[int]) -> list[Any]:
    group = join("cpu", timeout_s=20)
    found: list[Any] = []
    for length in lengths:
        model, data = Normed(), rows(length)
        model.norm(torch.full((4, FEATURES), float(group.rank)))  # each rank has statistics of its own
        options: dict[str, Any] = {"rank": group.rank, "world_size": group.world_size, "batch_size": 64}
        task, loader = Supervised(nn.CrossEntropyLoss()), EvalLoader(data, **options)
        values = evaluate(model, task, {"accuracy": Accuracy()}, loader, group, autocast=nullcontext)
        again = evaluate(
            model,
            task,
            {},
            loader,
            group,
            autocast=nullcontext,
            interrupted=lambda: group.rank == group.world_size - 1,
        )
        training = model.training
        indices, outputs, _ = predict(model, task, loader, group.device, autocast=nullcontext)
        found.append((values, again, training, indices.tolist(), len(outputs["prediction"])))
    group.leave()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_counts_are_those_of_plain_torch_at_every_number_of_ranks(ranks: int) -> None:
    lengths = [LENGTH, 2]  # two rows on up to four ranks
    results = run_ranks(ranks, evaluate_and_predict, lengths)
    for number, length in enumerate(lengths):
        model, data = Normed(), rows(length)
        model.norm(torch.zeros(4, FEATURES))
        model.eval()
        inputs, targets = data.tensors  # type: ignore[attr-defined]
        output = model(inputs).detach()
        expected = float((output.argmax(1) == targets).double().mean())
        loss = float(nn.functional.cross_entropy(output.double(), targets))
        for values, interrupted, training, _, _ in (result[number] for result in results):
            assert values["accuracy"] == expected
            assert values["loss"] == pytest.approx(loss, rel=1e-6)
            assert values == results[0][number][0]
            assert interrupted is None, "one interrupted rank and all discard"
            assert training
        predicted = [index for result in results for index in result[number][3]]
        assert sorted(predicted) == list(range(length))
        assert all(len(result[number][3]) == result[number][4] for result in results)


class Odd(Supervised):
    """Targets, or predictions, that are shaped by their batch."""

    def __init__(
        self, of_batch: Callable[[Tensor], Any], said: Callable[[Tensor], Tensor] = torch.clone
    ) -> None:
        super().__init__(nn.CrossEntropyLoss())
        self.of_batch, self.said = of_batch, said

    def target(self, batch: Any) -> Any:
        return self.of_batch(batch[1])

    def prediction(self, output: Any) -> Tensor:
        return self.said(output)


@pytest.mark.parametrize(
    ("of_batch", "shape"),
    [
        (lambda target: target, (100,)),
        (lambda target: target[:, None].expand(-1, 3), (100, 3)),
        (lambda target: target if len(target) == 64 else target[:5], None),
        (lambda target: target[:, None].expand(-1, len(target)), None),
        (lambda target: {"of": target}, None),
        (lambda target: target.sum(), None),
    ],
    ids=["whole", "wide", "in some batches", "padded by batch", "two", "one for all"],
)
def test_targets_are_given_where_every_batch_has_one_row_a_sample_of_one_shape(
    of_batch: Callable[[Tensor], Any], shape: tuple[int, ...] | None
) -> None:
    loader = EvalLoader(rows(100), rank=0, world_size=1, batch_size=64)
    device = torch.device("cpu")
    given: dict[str, Any] = {"autocast": nullcontext, "targets": True}
    _, outputs, targets = predict(Normed(), Odd(of_batch), loader, device, **given)
    assert list(outputs) == ["prediction"]
    assert (None if targets is None else targets.shape) == shape


def test_predictions_of_several_shapes_are_one_message() -> None:
    loader = EvalLoader(rows(100), rank=0, world_size=1, batch_size=64)
    task = Odd(lambda target: target, lambda output: output[:, :1].expand(-1, len(output)))
    with pytest.raises(DataError, match=r"'prediction' has rows of several shapes, \(36,\), \(64,\)"):
        predict(Normed(), task, loader, torch.device("cpu"), autocast=nullcontext)


def train_with_and_without(folder: str) -> list[Tensor]:
    found = []
    for name, given in {"without": {}, "with": {"val": rows(9)}}.items():
        torch.manual_seed(0)
        model = nn.Sequential(net(8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        settings = {"train.epochs": 3, "data.global_batch_size": 6, "train.eval_every_steps": 2}
        settings |= {"data.drop_last": True, "train.freeze": ["2.*"]}
        trainer(folder, name, settings, model=model, **given).fit()
        found.append(torch.cat([vector(model), model[2].running_mean]))  # type: ignore[list-item]
    return found


def test_evaluating_changes_nothing_of_the_training(tmp_path: Path) -> None:
    for without, including in run_ranks(2, train_with_and_without, str(tmp_path)):
        assert torch.equal(without, including)
        assert torch.equal(including[-8:], torch.zeros(8)), "a frozen norm's statistics stay"


class Carrying(Task):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        self.seen += 1
        return model(batch[0])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_modes_and_carried_state_are_put_back() -> None:
    model, task = Normed(), Carrying()
    model.norm.eval()
    with undisturbed(model, task):
        model.eval()
        task.forward(model, (torch.zeros(2, FEATURES),))
    assert (model.training, model.norm.training, model.drop.training, task.seen) == (True, False, True, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [4, 8, 10]),
        ({"eval_every_epochs": None}, [10]),
        ({"eval_every_epochs": 2, "eval_every_steps": 3}, [3, 6, 8, 9, 10]),
    ],
)
def test_evaluations_are_due_as_often_as_configured_and_at_the_end(
    settings: dict[str, Any], expected: list[int]
) -> None:
    train = TrainConfig(steps=10, **settings)
    assert [step for step in range(11) if is_due(train, step, 10, 4)] == expected


def train_on_the_average(folder: str) -> tuple[list[dict[str, float]], float]:
    watch, model, data = Watch(), net(1), rows(40, "one")
    settings = {"train.ema_decay": 0.9, "train.epochs": 2, "data.global_batch_size": 8}
    fit = trainer(
        folder,
        "average",
        settings,
        model=model,
        train=data,
        val=data,
        loss=nn.MSELoss(),
        metrics={"mse": MeanSquaredError()},
        hooks=[watch],
    )
    fit.fit()
    average = fit.parts.train_step.average
    assert average is not None and isinstance(data, TensorDataset)
    raw = vector(model)
    with average.in_place():
        loss = float(nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]).detach())
    assert torch.equal(vector(model), raw)
    return watch.evaluations, loss


def test_evaluations_are_of_the_moving_average(tmp_path: Path) -> None:
    for evaluations, loss in run_ranks(2, train_on_the_average, str(tmp_path)):
        assert [each["step"] for each in evaluations] == [5, 10]
        assert evaluations[-1]["val/loss"] == pytest.approx(loss, rel=1e-6)
        assert evaluations[-1]["val/mse"] == pytest.approx(loss, rel=1e-6)
