"""Ranks that disagree: what differs and on which rank is said on all of them, and nothing is committed."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_trainer.errors import RanksDisagree, RanksDiverged
from dist_trainer.training import own_code, preflight
from dist_trainer.training.hooks import Hook
from dist_trainer.training.task import Loss, Task
from tests.faults.ledger import is_whole, record
from tests.launchers.processes import Command
from tests.ranks import run_ranks
from tests.training.recipes import Net, Noisy
from tests.training.small import message_of, net, rows, trainer

pytestmark = pytest.mark.timeout(120)


class WithBuffer(nn.Module):
    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor([1.0, value]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs) * self.scale[0]


def rank_of_this_process() -> int:
    return int(os.environ["RANK"])


def first_linear(model: nn.Module) -> nn.Linear:
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def with_element(row: int, column: int, value: float) -> nn.Module:
    model = net()
    with torch.no_grad():
        first_linear(model).weight[row, column] += value
    return model


def with_name() -> nn.Module:
    model = net()
    model.add_module("3", nn.Identity())
    model[3].extra = nn.Parameter(torch.zeros(2))  # type: ignore[index]
    return model


def another_file(name: str, digest: str) -> None:
    old = own_code.source_files

    def changed(objects: Any) -> dict[str, str]:
        return old(objects) | {name: digest}

    own_code.source_files = changed  # type: ignore[assignment]


def as_given(fault: str) -> dict[str, Any]:
    """What the odd rank gives its Trainer, or does before."""
    match fault:
        case "setting":
            return {"settings": {"train.clip_grad_norm": 0.5}}
        case "harmless setting":
            return {"settings": {"checkpoint.every_steps": 3}}
        case "rate":
            return {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)}
        case "optimizer":
            return {"optimizer": lambda model: torch.optim.Adam(model.parameters())}
        case "source file":
            another_file("dist_trainer/training/step.py", "0123456789abcdef")
        case "version":
            np.__version__ = "1.0.0"
        case "length":
            return {"train": rows(24)}
        case "validation length":
            return {"val": rows(9)}
        case "data":
            other = rows()
            other.tensors[0][:, 1] += 1  # type: ignore[attr-defined]
            return {"train": other}
        case "name":
            return {"model": with_name()}
        case "shape":
            return {"model": net(outputs=4)}
        case "type":
            return {"model": net().double()}
        case "value":
            return {"model": with_element(4, 1, 1e-6)}
        case "seed":
            return {"model": net(seed=1)}
        case "buffer":
            return {"model": WithBuffer(1.5)}
    return {}


EXPECTED = {
    "setting": ["configuration: train.clip_grad_norm: 0.5 on rank {odd}, null on the others"],
    "harmless setting": ["configuration: checkpoint.every_steps: 3 on rank {odd}, 1000000 on the others"],
    "rate": ["model: optimizer main, group 0, lr: 0.2 on rank {odd}, 0.1 on the others"],
    "optimizer": ["model: optimizer main: Adam on rank {odd}, SGD on the others"],
    "source file": [
        "code: dist_trainer/training/step.py: 0123456789abcdef on rank {odd}",
        "give every node the same code",
    ],
    "version": ["versions: numpy: 1.0.0 on rank {odd}, ", "install the same versions"],
    "length": ["data: data.train, length: 24 on rank {odd}, 23 on the others"],
    "validation length": ["data: data.val, length: 9 on rank {odd}, 11 on the others"],
    "data": ["data: data.train, row ", "of its order: rank {odd} has another value than the others"],
    "name": ["model: 3.extra: float32[2] on rank {odd}, nothing on the others"],
    "shape": ["model: 2.weight: float32[4,5] on rank {odd}, float32[3,5] on the others"],
    "type": ["model: 0.weight: float64[5,3] on rank {odd}, float32[5,3] on the others"],
    "value": ["model: 0.weight[4,1]: ", " on rank {odd}, ", " on the others", "torch.manual_seed"],
    "seed": ["model: 0.weight[0,0]: ", "model: 2.bias: rank {odd} has another value than the others"],
    "buffer": ["model: scale[1]: 1.5 on rank {odd}, 1.0 on the others"],
}


def odd_start(folder: str, faults: tuple[str, ...], odd: int) -> str:
    """The message of a Trainer of which one rank is given something else."""
    given: dict[str, Any] = {"val": rows(11), "epochs": 1}
    settings: dict[str, Any] = {}
    if "buffer" in faults:
        given["model"] = WithBuffer()
    if rank_of_this_process() == odd:
        for fault in faults:
            other = as_given(fault)
            settings |= other.pop("settings", {})
            given |= other
    return message_of(lambda: trainer(folder, "run", settings, **given).fit())


TOGETHER = [  # a rank may differ in several things at once, and a start takes a second
    ("setting", "harmless setting", "rate", "source file", "version", "length", "validation length"),
    ("optimizer", "data", "value"),
    *((fault,) for fault in ("name", "shape", "type", "seed", "buffer")),
]
TRIED = [(fault,) for fault in EXPECTED] if is_whole() else TOGETHER


@pytest.mark.parametrize("faults", TRIED, ids=", ".join)
def test_what_differs_before_the_first_step_is_named_with_its_rank(
    faults: tuple[str, ...], tmp_path: Path
) -> None:
    odd = random.Random(str(faults)).randrange(3)
    messages = run_ranks(3, odd_start, str(tmp_path), faults, odd)
    assert len(set(messages)) == 1, messages
    assert messages[0].startswith(f"RanksDisagree: rank {odd} would not train what the others do"), messages
    for part in (part for fault in faults for part in EXPECTED[fault]):
        assert part.format(odd=odd) in messages[0], messages[0]
    assert not list(tmp_path.glob("run/checkpoints/*"))
    record(f"one of three ranks has another {', '.join(faults)} before step 1", tried=len(faults), lost=0)


def test_of_two_ranks_both_values_are_named(tmp_path: Path) -> None:
    messages = run_ranks(2, odd_start, str(tmp_path), ("setting",), 1)
    assert len(set(messages)) == 1
    assert "the ranks would not train the same" in messages[0]
    assert "train.clip_grad_norm: null on rank 0, 0.5 on rank 1" in messages[0]
    assert RanksDisagree.exit_code == 2  # so nobody restarts or requeues it


class Disturb(Hook):
    """Changes something on one rank after a step, as a flipped bit in its memory would."""

    def __init__(self, what: str, rank: int, step: int) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_step(self, trainer: Any, step: int, result: Any) -> None:
        if step != self.step or trainer.attempt.group.rank != self.rank:
            return
        (optimizer,) = trainer.parts.train_step.optimizers.values()
        weight = trainer.parts.model.second.weight
        match self.what:
            case "weight":
                weight.data.view(torch.int32)[3, 5] ^= 1 << 3
            case "moment":
                optimizer.state[weight]["exp_avg"][3, 5] += 1e-3
            case "option":
                optimizer.param_groups[0]["weight_decay"] = 0.1
            case "average":
                trainer.parts.train_step.average.state_dict()["second.weight"][3, 5] += 1.0


def disturbed(folder: str, hook: Disturb, options: dict[str, Any]) -> tuple[str, bool]:
    """The message of a run that is disturbed, and whether it is one of ranks that diverged."""
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "model": Net(),
        "train": Noisy(),
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        "hooks": [hook],
        "epochs": 3,
        "global_batch_size": 14,
    }
    one = trainer(folder, "run", {"checkpoint.every_steps": 4} | options, **given)
    message = message_of(one.fit)
    return message, message.startswith(RanksDiverged.__name__)


DISTURBED = {
    "weight": ["parameter second.weight"],
    "moment": ["parameter second.weight, optimizer state exp_avg of second.weight"],
    "option": ["optimizer option weight_decay of group 0, parameter first.weight, "],
    "average": ["average of second.weight differ"],
}


@pytest.mark.parametrize("what", DISTURBED)
def test_a_rank_that_goes_astray_in_mid_run_is_named_and_nothing_is_committed(
    what: str, tmp_path: Path
) -> None:
    chance = random.Random(what)
    ranks = 2 if what == "option" else 3
    odd, step = chance.randrange(ranks), chance.randrange(5, 8)
    options = {"train.ema_decay": 0.9} if what == "average" else {}
    results = run_ranks(ranks, disturbed, str(tmp_path), Disturb(what, odd, step), options)
    assert len(set(results)) == 1 and results[0][1], results
    message = results[0][0]
    who = f"rank {odd} no longer agrees with the others" if ranks > 2 else "the ranks no longer agree"
    assert message.startswith(f"RanksDiverged: step 8: {who}: "), message
    assert "All were alike at step 4." in message
    for part in DISTURBED[what]:
        assert part in message, message
    committed = [path.parent.name for path in tmp_path.glob("run/checkpoints/*/COMMIT.json")]
    assert [name.split("-")[1] for name in committed] == ["000000004"], "the one from before, and no other"
    if what == "weight":
        (alarm,) = [
            line
            for line in (tmp_path / "run/journal/rank-0.jsonl").read_text().splitlines()
            if '"alarm"' in line
        ]
        assert "parameter second.weight[3,5]: " in json.loads(alarm)["message"]
        assert f" on rank {odd}, " in json.loads(alarm)["message"]
    record(f"one rank's {what} is changed in mid-run", tried=1, lost=0)


def test_it_goes_on_from_the_last_good_checkpoint(tmp_path: Path) -> None:
    assert all(found for _, found in run_ranks(2, disturbed, str(tmp_path), Disturb("weight", 1, 7), {}))
    again = run_ranks(2, disturbed, str(tmp_path), Disturb("weight", 1, -1), {})
    assert again == [("", False)] * 2
    starts = [json.loads(line) for line in (tmp_path / "run/attempts.jsonl").read_text().splitlines()]
    assert [line["first_step"] for line in starts if line["event"] == "start"] == [0, 4]


class Game(Task):
    """Two phases, each with an optimizer of its own, as in a GAN."""

    def optimizers(self, model: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
        return {"one": make(model[0]), "two": torch.optim.SGD(model[2].parameters(), lr=0.01)}

    def phases(self, step: int) -> tuple[str, ...]:
        return ("one", "two")

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch[0])

    def loss(self, output: Any, batch: Any) -> Loss:
        return Loss(nn.functional.cross_entropy(output, batch[1], reduction="sum"), len(batch[1]))


class Odd(nn.Module):
    """Tied weights, a channels_last convolution, an empty parameter, a batch norm, dropout, a 0-dim parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 4, (1, 3), padding=(0, 1))
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.head = nn.Linear(12, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(inputs[:, None, None])).flatten(1)
        hidden = nn.functional.dropout(self.two(torch.relu(self.one(hidden))), 0.2, self.training)
        return self.head(hidden) * self.scale + self.empty.sum()


class Unseeded(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Draws from elsewhere than the seeded generators, and one row cannot be read."""

    def __init__(self) -> None:
        self.chance = np.random.default_rng()

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            raise ValueError("torn")
        return torch.from_numpy(self.chance.normal(size=3)).float(), index % 3


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), amsgrad=True)


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=3)


ALIKE: dict[str, Callable[[], dict[str, Any]]] = {
    "odd parameters": lambda: {"model": Odd(), "optimizer": adam},
    "lbfgs": lambda: {"optimizer": lbfgs},
    "two optimizers": lambda: {"loss": None, "task": Game(), "val": rows(9)},
    "powersgd": lambda: {"settings": {"ddp.compress": "powersgd"}},
    "fp16, average, clipping": lambda: {
        "settings": {"train.precision": "fp16", "train.ema_decay": 0.9, "train.clip_grad_norm": 0.1}
    },
    "balanced order": lambda: {"train": Noisy(30), "model": Net(), "settings": {"data.order": "sequential"}},
    "loader processes": lambda: {"train": Noisy(30), "model": Net(), "settings": {"data.num_workers": 1}},
    "unseeded data": lambda: {"train": Unseeded(), "settings": {"data.bad_rows": "skip"}},
    "trained before": dict,
}


def all_alike(folder: str) -> list[str]:
    """Fits that must not be stopped, one after another in one process; the messages of those that were."""
    odd = Odd()
    messages = []
    for name, make in ALIKE.items():
        torch.manual_seed(0)
        given = make() | (
            {"model": odd, "optimizer": adam} if name in ("odd parameters", "trained before") else {}
        )
        settings = {"checkpoint.every_steps": 2} | given.pop("settings", {})
        one = trainer(
            folder, name.replace(" ", "-").replace(",", ""), settings, epochs=3, global_batch_size=8, **given
        )
        messages.append(message_of(one.fit))
    return messages


def resized(folder: str) -> str:
    given = {"model": Odd(), "optimizer": adam, "epochs": 5, "global_batch_size": 8}
    return message_of(trainer(folder, "odd-parameters", {"checkpoint.every_steps": 2}, **given).fit)


def test_ranks_that_are_alike_are_not_stopped(tmp_path: Path) -> None:
    for messages in run_ranks(3, all_alike, str(tmp_path)):
        assert dict(zip(ALIKE, messages, strict=True)) == dict.fromkeys(ALIKE, "")
    assert run_ranks(2, resized, str(tmp_path)) == ["", ""]  # goes on where three had trained
    record("ranks that agree are stopped all the same", tried=len(ALIKE) + 1, lost=0)


def two_models(folder: str) -> list[str]:
    """A script that seeds once and trains one model after another."""
    torch.manual_seed(3)
    messages = []
    for name in ("one", "two"):
        model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 3))
        messages.append(message_of(trainer(folder, name, model=model, epochs=1).fit))
    return messages


def test_a_script_that_seeds_once_trains_two_models(tmp_path: Path) -> None:
    assert run_ranks(2, two_models, str(tmp_path)) == [["", ""]] * 2


def test_one_rank_compares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("nothing is to be compared")

    monkeypatch.setattr(preflight, "differences", refuse)
    monkeypatch.setattr(own_code, "source_files", refuse)
    assert message_of(trainer(str(tmp_path), "run", epochs=1).fit) == ""


MODEL = """
import os
import torch
from tests.training.recipes import Net

def make():
    model = Net()
    if os.environ.get("RANK") == "2":  # a node with another version of the file
        model.head.bias.data[1] = 7.0
    return model
"""
CONFIG = """
name: run
model: {target: odd_model.make}
data: {train: {target: tests.training.recipes.Noisy}, global_batch_size: 14}
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 0.05}
train: {epochs: 1}
tracking: {uri: null}
launch: {device: cpu, workers_per_node: 3}
"""


def test_the_command_names_the_rank_and_restarts_nothing(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    (tmp_path / "odd_model.py").write_text(MODEL)
    (tmp_path / "run.yaml").write_text(CONFIG)
    one = command("-m", "dist_trainer.cli", "train", "run.yaml")
    assert one.finish(timeout_s=90) == 2, one.stderr + one.stdout
    said = one.stderr + one.stdout
    assert said.count("rank 2 would not train what the others do, so nothing was trained") == 1, said
    assert "head.bias[1]: 7.0 on rank 2, " in said
    assert "Restarting" not in said
    attempts = [json.loads(line) for line in (tmp_path / "runs/run/attempts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in attempts] == ["end"] and attempts[0]["exit_code"] == 2
    assert not list(tmp_path.glob("runs/run/checkpoints/*/COMMIT.json"))


def test_what_two_ranks_have_loaded_costs_little_to_compare(tmp_path: Path) -> None:
    """Prints; a time is no reason to fail."""
    import time

    import torchvision

    from dist_trainer.training import digests

    model = torchvision.models.resnet18()
    for name, look in {
        "source files and versions": lambda: (own_code.source_files([model]), own_code.versions([model])),
        "11 million weights": lambda: digests.of_tensors(model.state_dict()),
    }.items():
        look()
        began = time.perf_counter()
        look()
        print(f"{name}: {(time.perf_counter() - began) * 1e3:.0f} ms")
    assert len(own_code.source_files([model])) > 100
