"""Puts together what a rank trains with: model, optimizers, schedules, loaders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dist_trainer.adapters.distributed import Group
from dist_trainer.config.schema import Settings
from dist_trainer.training.checks import check_combination, check_single_rows
from dist_trainer.training.early_stopping import EarlyStopping
from dist_trainer.training.loader import EvalLoader, TrainLoader
from dist_trainer.training.metrics import Metric
from dist_trainer.training.optimizer import Schedule, freeze, set_train_mode
from dist_trainer.training.sampler import ResumableSampler
from dist_trainer.training.step import TrainStep
from dist_trainer.training.task import Task


@dataclass(frozen=True)
class Scheduler:
    """A learning-rate schedule: warm-up, then what `make` builds for an optimizer and the steps after warm-up."""

    make: Callable[[Optimizer, int], LRScheduler] | None = None
    warmup_steps: int = 0
    metric: str | None = None  # what ReduceLROnPlateau watches


@dataclass(frozen=True)
class Ingredients:
    """What the user brings."""

    model: nn.Module
    task: Task
    train: Any
    val: Any
    test: Any
    metrics: Mapping[str, Metric]
    optimizer: Optimizer | Callable[[nn.Module], Optimizer]
    scheduler: Scheduler
    collate: Callable[[list[Any]], Any] | None


@dataclass(frozen=True)
class Parts:
    """What one rank trains with."""

    model: nn.Module
    task: Task
    metrics: Mapping[str, Metric]
    train_step: TrainStep
    schedules: dict[str, Schedule]  # by phase
    early_stopping: EarlyStopping | None
    sampler: ResumableSampler
    loader: TrainLoader
    eval_loaders: dict[str, EvalLoader]  # by split: val, test
    total_steps: int

    def close(self) -> None:
        """End the loaders' processes."""
        self.loader.close()
        for loader in self.eval_loaders.values():
            loader.close()


def build(given: Ingredients, settings: Settings, group: Group) -> Parts:
    """Everything for one rank; raises ConfigError for what does not fit together. Collective."""
    torch.use_deterministic_algorithms(settings.train.deterministic)
    freeze(given.model, settings.train.freeze)
    model = given.model
    if settings.ddp.sync_batchnorm and group.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model.to(group.device)
    make = given.optimizer
    optimizers = given.task.optimizers(
        model, lambda module: make if isinstance(make, Optimizer) else make(module)
    )
    check_combination(model, settings, group, len(optimizers))
    sampler, loader, eval_loaders = _loaders(given, settings, group)
    set_train_mode(model)
    check_single_rows(model, given.task, loader, settings, group)
    if settings.train.compile:
        model.compile()
    train_step = TrainStep(
        model, given.task, optimizers, group, train=settings.train, ddp=settings.ddp, seed=settings.seed
    )
    total_steps = settings.train.steps or (settings.train.epochs or 1) * sampler.steps_per_epoch
    stopping = settings.train.early_stopping
    return Parts(
        model,
        given.task,
        given.metrics,
        train_step,
        {name: _schedule(given.scheduler, optimizer, total_steps) for name, optimizer in optimizers.items()},
        EarlyStopping(stopping) if stopping else None,
        sampler,
        loader,
        eval_loaders,
        total_steps,
    )


def _schedule(plan: Scheduler, optimizer: Optimizer, total_steps: int) -> Schedule:
    make = plan.make
    steps = total_steps - plan.warmup_steps
    return Schedule(
        optimizer,
        (lambda target: make(target, steps)) if make else None,
        warmup_steps=plan.warmup_steps,
        metric=plan.metric,
    )


def _loaders(
    given: Ingredients, settings: Settings, group: Group
) -> tuple[ResumableSampler, TrainLoader, dict[str, EvalLoader]]:
    data, parts = settings.data, settings.train.accumulate_steps
    sampler = ResumableSampler(
        given.train,
        global_batch_size=data.global_batch_size,
        rank=group.rank,
        world_size=group.world_size,
        seed=settings.seed,
        order=data.order,
        accumulate_steps=parts,
        drop_last=data.drop_last,
    )
    shared: dict[str, Any] = {
        "num_workers": data.num_workers,
        "collate": given.collate,
        "bad_rows": data.bad_rows,
        "pin_memory": group.device.type == "cuda",
        "seed": settings.seed,
    }
    batch_size = data.eval_batch_size or -(-data.global_batch_size // (group.world_size * parts))
    eval_loaders = {
        split: EvalLoader(
            dataset,
            rank=group.rank,
            world_size=group.world_size,
            batch_size=batch_size,
            name=f"data.{split}",
            **shared,
        )
        for split, dataset in (("val", given.val), ("test", given.test))
        if dataset is not None
    }
    return sampler, TrainLoader(given.train, sampler, **shared), eval_loaders
