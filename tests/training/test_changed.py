"""What a resumed run is trained with once its configuration changed: the new rates, options, average and data."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Scheduler, Trainer
from tests.ranks import run_ranks
from tests.training.small import message_of, net, rows, trainer, vector

pytestmark = pytest.mark.timeout(120)
SGD: dict[str, Any] = {"lr": 0.002, "momentum": 0.9, "weight_decay": 0.0}


class Noting(torch.optim.SGD):
    """Keeps the options that each update was really made with, by group."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.used: list[list[dict[str, float]]] = []

    def step(self, closure: Any = None) -> Any:
        self.used.append(
            [{name: float(group[name]) for name in SGD if name != "params"} for group in self.param_groups]
        )
        return super().step(closure)


class StopAt(Hook):
    """What a machine that is wanted back does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def used(
    folder: str,
    name: str,
    *,
    stop: int = 0,
    scheduler: Scheduler | None = None,
    scale: float = 10,
    **options: Any,
) -> list[list[dict[str, float]]]:
    """The options of each update of 12, or of those up to a stop."""
    made: list[Noting] = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        parameters, given = list(model.parameters()), {**SGD, **options}
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": given["lr"] * scale}]
        made.append(Noting(groups, **given))
        return made[-1]

    settings = {"train.steps": 12, "data.global_batch_size": 6, "train.eval_every_steps": 1}
    hooks = [StopAt(stop)]
    trainer(folder, name, settings, optimizer=make, scheduler=scheduler, val=rows(6), hooks=hooks).fit()
    return made[-1].used


def cosine(warmup: int, floor: float = 0.0) -> Scheduler:
    return Scheduler(lambda each, steps: schedulers.CosineAnnealingLR(each, steps, floor), warmup)


def one_cycle(top: float) -> Scheduler:
    return Scheduler(lambda each, steps: schedulers.OneCycleLR(each, top, total_steps=20))


def plateau(**arguments: Any) -> Scheduler:
    # no loss is that much better than the one before: the rate falls at every evaluation
    arguments = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": 0.5} | arguments
    return Scheduler(lambda each, steps: schedulers.ReduceLROnPlateau(each, **arguments), metric="val/loss")


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({"scheduler": cosine(2)}, {"scheduler": cosine(2)}),
    "lr": ({}, {"lr": 0.5}),
    "lr of one group": ({}, {"scale": 3}),
    "momentum and weight decay": ({}, {"momentum": 0.5, "weight_decay": 0.1}),
    "lr under a schedule": ({"scheduler": cosine(2)}, {"scheduler": cosine(2), "lr": 0.5}),
    "an argument of the schedule": ({"scheduler": cosine(2)}, {"scheduler": cosine(2, floor=0.001)}),
    "warm-up": ({"scheduler": Scheduler()}, {"scheduler": Scheduler(warmup_steps=9)}),
    "lr in a warm-up": ({"scheduler": Scheduler(None, 9)}, {"scheduler": Scheduler(None, 9), "lr": 0.5}),
    "a schedule where none was": ({}, {"scheduler": cosine(2)}),
    "a schedule that is gone": ({"scheduler": cosine(2)}, {}),
    "one that sets the momentum too": ({"scheduler": one_cycle(0.1)}, {"scheduler": one_cycle(0.5)}),
    "lr on a plateau": ({"scheduler": plateau()}, {"scheduler": plateau(), "lr": 0.5}),
    "a plateau's lowest rate": ({"scheduler": plateau()}, {"scheduler": plateau(min_lr=1e-4)}),
    "a plateau where none was": ({}, {"scheduler": plateau(factor=1 - 1e-9)}),
}


def before_and_after(folder: str) -> dict[str, Any]:
    found = {}
    for number, (name, (before, after)) in enumerate(CHANGES.items()):
        used(folder, f"changed-{number}", stop=4, **before)
        found[name] = used(folder, f"changed-{number}", **after), used(folder, f"always-{number}", **after)
    return found


def test_a_resumed_run_is_trained_with_the_options_it_has_now(tmp_path: Path) -> None:
    (found,) = run_ranks(1, before_and_after, str(tmp_path))
    for name, (resumed, always) in found.items():
        assert 6 <= len(resumed) <= 8 and len(always) == 12, name
        for one, other in zip(resumed, always[-len(resumed) :], strict=True):
            assert one == [pytest.approx(each, rel=1e-6) for each in other], name


def plateau_with_another_factor(folder: str) -> tuple[list[float], list[float]]:
    before = used(folder, "run", stop=3, scheduler=plateau(), lr=0.8)
    resumed = used(folder, "run", scheduler=plateau(factor=0.1), lr=0.4)
    return [groups[0]["lr"] for groups in before], [groups[0]["lr"] for groups in resumed]


def test_a_plateau_goes_on_from_the_new_rate_as_far_down_as_before(tmp_path: Path) -> None:
    ((before, after),) = run_ranks(1, plateau_with_another_factor, str(tmp_path))
    assert before == pytest.approx([0.8, *(0.8 * 0.5**n for n in range(len(before) - 1))])
    reduced = before[-1] / 0.8
    # the stop interrupted an evaluation, which comes first now
    assert after[:3] == pytest.approx([0.4 * reduced * 0.1**n for n in (1, 2, 3)])


def own_optimizer_twice(folder: str) -> list[float]:
    model = net()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = [float(own.param_groups[0]["lr"])]
    for steps in (4, 8):
        trainer(folder, "run", {"train.steps": steps}, model=model, optimizer=own, scheduler=cosine(0)).fit()
        rates.append(float(own.param_groups[0]["lr"]))
    return rates


def test_an_optimizer_of_the_users_own_has_its_rate_again_after_a_fit(tmp_path: Path) -> None:
    assert run_ranks(1, own_optimizer_twice, str(tmp_path)) == [[0.1, 0.1, 0.1]]


def average_switched_on(folder: str) -> tuple[Any, Any, Any]:
    first = trainer(folder, "run", {"train.steps": 5})
    first.fit()
    weights = vector(first.given.model)
    settings = {"train.steps": 6, "train.ema_decay": 0.75}
    # the Python interface refuses a changed setting; --allow-change rewrites the file
    (Path(folder) / "run" / "config.yaml").write_text(
        (Path(folder) / "run" / "config.yaml").read_text().replace("ema_decay: null", "ema_decay: 0.75")
    )
    second = trainer(folder, "run", settings, model=net(seed=9))
    second.fit()
    average = second.parts.train_step.average
    assert average is not None
    return weights, vector(second.given.model), [*average.state_dict().values()]


def test_an_average_switched_on_in_mid_run_begins_with_the_weights_there(tmp_path: Path) -> None:
    ((before, after, average),) = run_ranks(1, average_switched_on, str(tmp_path))
    found = torch.cat([each.flatten() for each in average])
    torch.testing.assert_close(found, 0.75 * before + 0.25 * after)


def grow(folder: str) -> str:
    trainer(folder, "run", {"train.steps": 5}).fit()
    return message_of(trainer(folder, "run", {"train.steps": 8}, train=rows(24)).fit)


def test_data_of_another_length_are_refused(tmp_path: Path) -> None:
    (message,) = run_ranks(1, grow, str(tmp_path))
    assert message.startswith("ConfigError: data.train has 24 rows, and the checkpoint was trained on 23: ")
    assert "--fresh" in message


def lose(folder: str, damage: Callable[[Path], None]) -> list[str]:
    messages = []
    for name in ("finished", "saved"):
        run = Path(folder) / name
        trainer(folder, name, {"train.steps": 4}).fit()
        shutil.rmtree(run / "checkpoints")
        damage(run) if name == "saved" else None
        messages += [message_of(trainer(folder, name, {"train.steps": 8}).fit) for _ in range(2)]
    return messages


def forget_attempts(run: Path) -> None:
    (run / "attempts.jsonl").unlink()


def test_a_run_whose_checkpoints_are_gone_never_starts_from_scratch(tmp_path: Path) -> None:
    (messages,) = run_ranks(1, lose, str(tmp_path), forget_attempts)
    assert len(messages) == 4
    for message in messages:
        assert message.startswith(f"NoUsableCheckpoint: {tmp_path}")
        assert "/checkpoints: no checkpoint is there" in message and "--fresh" in message
