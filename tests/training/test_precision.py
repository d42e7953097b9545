"""Precisions, compressed gradients, a compiled model, and every listed loss and optimizer."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks
from tests.training.small import Watch, journal, message_of, net, rows, sgd, trainer, vector

pytestmark = pytest.mark.timeout(180)

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"train.precision": "bf16"},
    "fp16": {"train.precision": "fp16"},
    "compress fp16": {"ddp.compress": "fp16"},
    "compress bf16": {"ddp.compress": "bf16"},
    "powersgd": {"ddp.compress": "powersgd"},
    "deterministic": {"train.deterministic": True},
}


def train_ways(folder: str) -> dict[str, Any]:
    found = {}
    for name, settings in WAYS.items():
        watch, model = Watch(), net()
        fit = trainer(
            folder,
            name.replace(" ", "-"),
            {
                "train.epochs": 8,
                "data.global_batch_size": 7,
                "train.accumulate_steps": 2,
                "data.order": "sequential",
            }
            | settings,
            model=model,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
            hooks=[watch],
        )
        fit.fit()
        scaler = fit.parts.train_step.scaler
        found[name] = (vector(model), watch.steps, scaler.get_scale() if scaler else None)
        torch.use_deterministic_algorithms(False)
    return found


def test_every_precision_and_compression_trains_alike_on_all_ranks(tmp_path: Path) -> None:
    results = run_ranks(2, train_ways, str(tmp_path))
    exact, exact_steps, _ = results[0]["fp32"]
    for name in WAYS:
        weights, steps, _ = results[0][name]
        assert torch.equal(weights, results[1][name][0]), f"{name}: ranks differ"
        applied = [step for step in steps if not step[2]]
        assert applied[-1][0] < applied[0][0], name
        torch.testing.assert_close(
            weights, exact, rtol=0.1, atol=0.1, msg=lambda text, n=name: f"{n}: {text}"
        )
        exactly = name in ("fp32", "deterministic")
        assert torch.equal(weights, exact) is exactly, f"{name} has to make a difference in the bits"
    for name in ("compress fp16", "compress bf16", "powersgd"):  # what is reported is not rounded
        assert results[0][name][1][0][0] == pytest.approx(exact_steps[0][0], rel=1e-6)
    assert results[0]["fp16"][2] <= 65536


class Overflowing(nn.Module):
    """Its gradient is infinite in fp16 until the scale has come down."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * 30.0


def train_overflowing(folder: str) -> tuple[list[tuple[float, float, bool]], float, Tensor, Tensor]:
    watch, model = Watch(), Overflowing()
    fit = trainer(
        folder,
        "overflow",
        {"train.precision": "fp16", "train.ema_decay": 0.5, "train.steps": 12},
        model=model,
        loss=lambda output, target: nn.functional.cross_entropy(output, target) * 30.0,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
        hooks=[watch],
    )
    start = vector(model)
    fit.fit()
    scaler, average = fit.parts.train_step.scaler, fit.parts.train_step.average
    assert scaler is not None and average is not None
    return watch.steps, scaler.get_scale(), start, vector(model)


def test_the_scaler_skips_lowers_its_scale_and_goes_on(tmp_path: Path) -> None:
    steps, scale, start, end = run_ranks(2, train_overflowing, str(tmp_path))[0]
    skipped = [step[2] for step in steps]
    assert skipped[0] and not skipped[-1]
    assert scale == 65536 / 2 ** sum(skipped)
    assert not torch.equal(start, end)
    events = [line for line in journal(tmp_path, "overflow") if line["kind"] == "skipped"]
    assert [event["step"] for event in events] == [n + 1 for n, skip in enumerate(skipped) if skip]


def refuse(folder: str) -> list[str]:
    found = []
    for name, optimizer in {
        "lbfgs": lambda model: torch.optim.LBFGS(model.parameters()),
        "muon": lambda model: torch.optim.Muon(model.parameters()),
    }.items():
        fit = trainer(folder, name, {"train.precision": "fp16"}, optimizer=optimizer)
        found.append(message_of(fit.fit))
    return found


def test_a_closure_with_a_scaler_is_refused_before_training(tmp_path: Path) -> None:
    lbfgs, muon = run_ranks(1, refuse, str(tmp_path))[0]
    assert "ConfigError: train.precision fp16 scales the loss, which LBFGS cannot undo" in lbfgs
    assert "Muon only supports 2D parameters" in muon


def train_compiled(folder: str) -> dict[str, tuple[list[float], Tensor]]:
    found = {}
    for compiled in (False, True):
        watch, model = Watch(), net()
        trainer(
            folder,
            f"compiled-{compiled}",
            {"train.compile": compiled, "train.epochs": 2, "data.global_batch_size": 7},
            model=model,
            train=rows(15),
            val=rows(9),
            hooks=[watch],
        ).fit()
        found[str(compiled)] = ([step[0] for step in watch.steps], vector(model))
        assert set(model.state_dict()) == set(net().state_dict())
    return found


@pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is none"
)
@pytest.mark.timeout(300)
def test_a_compiled_model_trains_as_the_plain_one(tmp_path: Path) -> None:
    # 15 rows in sevens on two ranks: sizes 4, 3 and 1, and a rank without rows
    for found in run_ranks(2, train_compiled, str(tmp_path), timeout_s=240):
        assert found["True"][0] == pytest.approx(found["False"][0], rel=1e-4)
        torch.testing.assert_close(found["True"][1], found["False"][1], rtol=1e-4, atol=1e-5)


LOSSES: dict[str, tuple[nn.Module, str, bool]] = {
    "MSE": (nn.MSELoss(), "values", False),
    "L1": (nn.L1Loss(), "values", False),
    "cross-entropy": (nn.CrossEntropyLoss(), "class", False),
    "BCE": (nn.BCELoss(), "yes", True),
    "BCE-logits": (nn.BCEWithLogitsLoss(), "yes", False),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": sgd,
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1),
}


def train_every_pair(folder: str) -> dict[tuple[str, str], tuple[float, float]]:
    found = {}
    pairs = dict.fromkeys([*((loss, "SGD") for loss in LOSSES), *(("MSE", each) for each in OPTIMIZERS)])
    for loss, optimizer in pairs:
        function, target, sigmoid = LOSSES[loss]
        watch, body = Watch(), net(1 if target == "yes" else 3)
        trainer(
            folder,
            f"{loss}-{optimizer}",
            {"train.epochs": 12, "data.global_batch_size": 8},
            model=nn.Sequential(body, nn.Sigmoid()) if sigmoid else body,
            train=rows(40, target),
            val=rows(40, target),
            loss=function,
            optimizer=OPTIMIZERS[optimizer],
            hooks=[watch],
        ).fit()
        found[loss, optimizer] = (watch.evaluations[0]["val/loss"], watch.evaluations[-1]["val/loss"])
    return found


def test_every_listed_loss_and_optimizer_learns(tmp_path: Path) -> None:
    for (loss, optimizer), (first, last) in run_ranks(2, train_every_pair, str(tmp_path), timeout_s=100)[
        0
    ].items():
        assert math.isfinite(last) and last < 0.8 * first, f"{loss} with {optimizer}: {first} -> {last}"
