"""Tasks: batches of any shape, several outputs, sums, several optimizers, and state carried along."""

from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from dist_trainer.training.batch import Batch, move_to, tensors_of
from dist_trainer.training.task import Loss, Supervised, Task
from dist_trainer.training.trainer import Result
from tests.ranks import RankFailed, run_ranks
from tests.training.recipes import KillAt, weights_digest
from tests.training.small import CLASSES, FEATURES, Watch, message_of, net, rows, sgd, trainer, vector

pytestmark = pytest.mark.timeout(120)


class Dicts(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.inputs, self.targets = rows(22).tensors  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.inputs[index], "label": self.targets[index], "mask": self.inputs[index] > -1}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.kind, self.size = nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES), nn.Linear(6, 1)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x * mask))
        return {"kind": self.kind(hidden), "size": self.size(hidden)}


class TwoLosses(Task):
    """A dict in, a dict out, and a loss that is a plain sum over rows."""

    averaged = False

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch["x"], batch["mask"])

    def loss(self, output: Any, batch: Any) -> Loss:
        kind = nn.functional.cross_entropy(output["kind"], batch["label"], reduction="sum")
        size = (output["size"][:, 0] - batch["x"].sum(1)).square().sum()
        return Loss(0.1 * (kind + size), len(batch["x"]))

    def target(self, batch: Any) -> Any:
        return batch["label"]


class HeadAccuracy:
    def measure(self, output: Any, target: Any) -> Tensor:
        right = output["kind"].argmax(1) == target
        return torch.tensor([float(right.sum()), len(target)], dtype=torch.float64)

    def compute(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1])


def train_dicts(folder: str) -> tuple[Tensor, list[float], dict[str, float], str]:
    watch, model = Watch(), TwoHeads()
    result = trainer(
        folder,
        "dicts",
        {"train.epochs": 3, "data.global_batch_size": 5, "train.accumulate_steps": 2},
        model=model,
        train=Dicts(),
        val=Dicts(),
        task=TwoLosses(),
        metrics={"kind": HeadAccuracy()},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
        hooks=[watch],
    ).fit()
    return vector(model), [step[0] for step in watch.steps], result.metrics, watch.ended


def test_dict_batches_several_outputs_and_a_summed_loss(tmp_path: Path) -> None:
    alone = run_ranks(1, train_dicts, str(tmp_path / "1"))[0]
    for found in run_ranks(3, train_dicts, str(tmp_path / "3")):
        torch.testing.assert_close(found[0], alone[0], rtol=1e-6, atol=1e-6)
        assert found[1] == pytest.approx(alone[1], rel=1e-5)
        assert found[2] == pytest.approx(alone[2], rel=1e-5)
        assert set(found[2]) == {"val/loss", "val/kind"}
        assert found[3] == "finished"
    task, model, first = TwoLosses(), TwoHeads(), Dicts()
    order = [{key: value[None] for key, value in first[index].items()} for index in range(22)]
    whole = sum(float(task.loss(task.forward(model, each), each).sum.detach()) for each in order)
    assert sum(alone[1][:1]) < whole, "a step's loss is the sum over its rows"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maker = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, FEATURES))
        self.judge = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.judge(inputs)


class Game(Task):
    """The judge learns at every step, the maker at every second one; how well the judge did is carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.history = torch.zeros(2)
        self.calls = 0

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch[0])

    def training_loss(self, model: nn.Module, batch: Any, phase: str) -> Loss:
        assert isinstance(model, Pair)
        count = len(batch[0])
        made = model.maker(torch.randn(count, 2))
        truth = torch.ones(count, 1)
        if phase == "maker":
            return Loss(self._judged(model, made, truth) * (1 + self.history[0]), count)
        self.calls += 1
        loss = self._judged(model, batch[0], truth) + self._judged(model, made.detach(), truth * 0)
        if count:
            self.history = 0.5 * self.history + 0.5 * torch.stack(
                [loss.detach() / count, made.mean().detach()]
            )
        return Loss(loss, count)

    def _judged(self, model: Pair, inputs: Tensor, truth: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model.judge(inputs), truth, reduction="sum")

    def optimizers(self, model: nn.Module, make: Callable[[nn.Module], Optimizer]) -> dict[str, Optimizer]:
        assert isinstance(model, Pair)
        return {"judge": make(model.judge), "maker": torch.optim.Adam(model.maker.parameters(), lr=0.01)}

    def phases(self, step: int) -> Sequence[str]:
        return ("judge", "maker") if step % 2 else ("judge",)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.calls = state["history"], state["calls"]


class Makers(Watch):
    """The maker's first weight after each step."""

    def on_step(self, trainer: Any, step: int, result: Any) -> None:
        super().on_step(trainer, step, result)
        self.rates.append(float(trainer.parts.model.maker[0].weight[0, 0].detach()))


def play(folder: str, kill: tuple[int, int] | None = None) -> tuple[Result, Tensor, Tensor, int, list[float]]:
    watch, model, task = Makers(), Pair(), Game()
    hooks = [watch, KillAt(*kill, Path(folder) / "killed")] if kill else [watch]
    result = trainer(
        folder + "/runs",
        "run",
        {
            "train.epochs": 3,
            "data.global_batch_size": 5,
            "train.accumulate_steps": 2,
            "train.clip_grad_norm": 1.0,
            "train.precision": "bf16",
            "checkpoint.every_steps": 4,
        },
        model=model,
        task=task,
        hooks=hooks,
    ).fit()
    return result, vector(model), task.history, task.calls, watch.rates[1::2]


@pytest.mark.parametrize("ranks", [1, 3])
def test_two_optimizers_and_carried_state_resume_bit_for_bit(ranks: int, tmp_path: Path) -> None:
    for name in ("untouched", "killed"):
        (tmp_path / name).mkdir()
    untouched = run_ranks(ranks, play, str(tmp_path / "untouched"))
    with pytest.raises(RankFailed):
        run_ranks(ranks, play, str(tmp_path / "killed"), (ranks - 1, 7))
    resumed = run_ranks(ranks, play, str(tmp_path / "killed"))
    for before, after in zip(untouched, resumed, strict=True):
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2])
        assert before[3] == after[3] == 15 * 2
    histories = [tuple(each[2].tolist()) for each in untouched]
    assert len(set(histories)) == ranks, "each rank has a state of its own"
    assert weights_digest(tmp_path / "untouched") == weights_digest(tmp_path / "killed")
    makers = untouched[0][4]
    changed = [a != b for a, b in pairwise(makers)]
    assert changed == [step % 2 == 1 for step in range(1, 15)]


def resize(folder: str) -> str:
    return message_of(lambda: play(folder))


def test_state_of_more_ranks_cannot_go_on_with_fewer(tmp_path: Path) -> None:
    with pytest.raises(RankFailed):
        run_ranks(2, play, str(tmp_path), (0, 7))
    (message,) = run_ranks(1, resize, str(tmp_path))
    assert "Game carries state from batch to batch, one for each of 2 ranks" in message
    assert "start 2 workers" in message


class Bare(Task):
    pass


def test_what_a_task_lacks_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"Bare defines no loss"):
        Bare().loss(None, None)
    assert Task().prediction((torch.ones(1), torch.zeros(1))).keys() == {"output_0", "output_1"}  # type: ignore[union-attr]
    assert Task().target({"x": 1}) is None
    assert Task().optimizers(net(), sgd).keys() == {"main"}


def test_inputs_may_be_a_tuple_or_a_dict() -> None:
    task, two = Supervised(nn.MSELoss()), torch.ones(2)
    assert task.forward(torch.add, ((two, two), None)).tolist() == [2, 2]  # type: ignore[arg-type]
    assert task.forward(torch.add, ({"input": two, "other": two}, None)).tolist() == [2, 2]  # type: ignore[arg-type]


def test_move_to_reaches_every_tensor() -> None:
    meta = torch.device("meta")
    moved = move_to({"a": (torch.ones(1), [torch.ones(2)]), "b": "text", "c": Loss(torch.ones(1), 2.0)}, meta)
    assert moved["a"][0].device == moved["a"][1][0].device == moved["c"].sum.device == meta
    assert (moved["b"], moved["c"].weight) == ("text", 2.0)


@dataclass
class Record:
    first: Tensor
    rest: dict[str, Tensor]


class Encoding(UserDict[str, Tensor]):
    """As a tokenizer gives it: a mapping that moves itself."""

    def to(self, device: torch.device) -> "Encoding":
        return Encoding({name: value.to(device) for name, value in self.items()})


class Graph:
    """As a graph library gives it: an object that holds another one, which knows it in turn."""

    def __init__(self, nodes: Tensor) -> None:
        self.store = Store(self, nodes)

    def to(self, device: torch.device) -> "Graph":
        return Graph(self.store.nodes.to(device))


class Store:
    def __init__(self, parent: Graph, nodes: Tensor) -> None:
        self.parent, self.nodes = parent, nodes

    def to(self, device: torch.device) -> "Store":
        return Store(self.parent, self.nodes.to(device))


@dataclass
class Computing:
    first: Tensor
    scale: InitVar[float]

    def __post_init__(self, scale: float) -> None:
        self.first = self.first * scale


def test_dataclasses_and_what_moves_itself_stay_what_they_are_on_another_device() -> None:
    meta = torch.device("meta")
    moved = move_to((Record(torch.ones(1), {"x": torch.ones(2)}), Encoding({"ids": torch.ones(3)})), meta)
    assert moved[0].first.device == moved[0].rest["x"].device == moved[1]["ids"].device == meta
    assert [type(part) for part in moved] == [Record, Encoding]
    assert [len(tensor) for tensor in tensors_of(moved)] == [1, 2, 3]


def test_all_tensors_of_an_object_that_holds_another_one_are_found() -> None:
    assert [
        len(tensor) for tensor in tensors_of([Graph(torch.ones(5)), Encoding({"ids": torch.ones(3)})])
    ] == [5, 3]


def test_a_dataclass_is_moved_without_being_made_anew() -> None:
    moved = move_to(Computing(torch.ones(2), 3.0), torch.device("meta"))
    assert moved.first.device.type == "meta" and type(moved) is Computing


def test_images_in_what_moves_itself_are_laid_out_in_channels_last_too() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    batch = Batch(Encoding({"pixels": pixels}), 2, channels_last=True).on(torch.device("cpu"))
    assert isinstance(batch.data, Encoding) and torch.equal(batch.data["pixels"], pixels)
    assert batch.data["pixels"].is_contiguous(memory_format=torch.channels_last)
