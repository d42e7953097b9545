"""Small fits on ranks, and the same training written by hand in plain torch on one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from dist_trainer.training.hooks import Hook
from dist_trainer.training.sampler import ResumableSampler
from dist_trainer.training.trainer import Trainer

QUIET: dict[str, Any] = {
    "tracking.uri": None,
    "tracking.log_every_steps": 1,
    "launch.device": "cpu",
    "launch.timeout_s": 20.0,
    "checkpoint.every_steps": 10**6,
    "checkpoint.every_minutes": None,
}
FEATURES, CLASSES = 3, 3


def net(outputs: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, outputs))


def rows(length: int = 23, target: str = "class") -> Dataset[Any]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(length, FEATURES, generator=generator)
    scores = inputs @ torch.randn(FEATURES, CLASSES, generator=generator)
    targets = {
        "class": scores.argmax(1),
        "values": scores,
        "one": scores[:, :1],
        "yes": (scores[:, :1] > 0).float(),
    }
    return TensorDataset(inputs, targets[target])


class Watch(Hook):
    """Keeps what each step and evaluation gave."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, bool]] = []
        self.rates: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.ended = ""

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        self.steps.append((result.loss, result.grad_norm, result.skipped))
        optimizer = next(iter(trainer.parts.train_step.optimizers.values()))
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def on_evaluation(self, trainer: Trainer, step: int, metrics: Any) -> None:
        self.evaluations.append({"step": step, **metrics})

    def on_end(self, trainer: Trainer, result: Any) -> None:
        self.ended = result.state


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: str, name: str, settings: dict[str, Any] | None = None, **given: Any) -> Trainer:
    given = {"model": net(), "train": rows(), "optimizer": sgd} | given
    if "task" not in given:
        given = {"loss": nn.CrossEntropyLoss()} | given
    return Trainer(name=name, runs=Path(folder), settings=QUIET | (settings or {}), **given)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def plain(
    model: nn.Module,
    dataset: Any,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    clip: float | None = None,
) -> tuple[Tensor, list[float], list[float]]:
    """Final weights, losses and gradient norms of a loop as in a tutorial, over the same rows in one process."""
    sampler = ResumableSampler(dataset, global_batch_size=batch, rank=0, world_size=1)
    losses, norms = [], []
    for step in range(epochs * sampler.steps_per_epoch):
        chosen = [dataset[int(index)] for index in sampler.rows(step)[0].indices]
        inputs, targets = (torch.stack(column) for column in zip(*chosen, strict=True))

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip if clip is not None else 1e30)
            norms.append(float(norm))
            losses.append(
                float(value.detach().nan_to_num())
            )  # no weight at all is 0 / 0 to torch, and 0 to us
            return value

        optimizer.step(closure)  # type: ignore[arg-type]
    return vector(model), losses, norms


def journal(folder: str | Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    path = Path(folder) / name / "journal" / f"rank-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def message_of(action: Callable[[], Any]) -> str:
    """The error that it raises, as `Type: message`; empty where there is none."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
