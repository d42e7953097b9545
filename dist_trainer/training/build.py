"""Puts together what a rank trains with: model, optimizers, schedules, loaders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dist_trainer.adapters.allocator import keep_freed_memory
from dist_trainer.adapters.distributed import Group
from dist_trainer.adapters.place import be_deterministic
from dist_trainer.config.schema import Settings
from dist_trainer.training.ahead import Ahead
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.checks import check_model, check_optimizers, check_single_rows, check_watched
from dist_trainer.training.early_stopping import EarlyStopping
from dist_trainer.training.group_options import configured
from dist_trainer.training.loader import EvalLoader, TrainLoader
from dist_trainer.training.memory_format import to_channels_last
from dist_trainer.training.metrics import Metric
from dist_trainer.training.optimizer import check_built_schedule, freeze, set_train_mode
from dist_trainer.training.preflight import check_same_start
from dist_trainer.training.sampler import ResumableSampler
from dist_trainer.training.schedule import Schedule
from dist_trainer.training.step import TrainStep
from dist_trainer.training.task import Task, move_held


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

    @property
    def made_by(self) -> list[object]:
        """The objects whose modules are the user's code."""
        splits = (self.train, self.val, self.test)
        others = (self.task, self.task.loss_function, self.collate, *self.metrics.values())
        return [*self.model.modules(), *splits, *others]


@dataclass(frozen=True)
class Parts:
    """What one rank trains with."""

    model: nn.Module
    task: Task
    metrics: Mapping[str, Metric]
    train_step: TrainStep
    configured: dict[str, list[dict[str, Any]]]  # by phase: each group's options before training
    schedules: dict[str, Schedule]  # by phase
    early_stopping: EarlyStopping | None
    sampler: ResumableSampler
    loader: TrainLoader
    eval_loaders: dict[str, EvalLoader]  # by split: val, test
    total_steps: int

    def start_loaders(self, first: int, interrupted: Callable[[], bool], device: torch.device) -> Ahead:
        """The batches from a step on, until interrupted.

        Forks the loaders' processes, so call it before threads are started.
        """
        if "val" in self.eval_loaders:
            self.eval_loaders["val"].start()
        batches = self.loader.steps(first, self.total_steps, interrupted=interrupted)
        return Ahead(batches, device, early=self.loader.reads_early(device))

    def close(self) -> None:
        """End the loaders' processes."""
        self.loader.close()
        for loader in self.eval_loaders.values():
            loader.close()


def build(given: Ingredients, settings: Settings, attempt: Attempt) -> Parts:
    """Everything for one rank; raises ConfigError for what does not fit together. Collective."""
    group = attempt.group
    if group.device.type == "cpu":
        keep_freed_memory()
    if settings.train.deterministic:
        be_deterministic()
    _check_watched(given, settings)
    freeze(given.model, settings.train.freeze)
    check_model(given.model, given.task, settings, group.device)
    model = _place(given, settings, group)
    make = given.optimizer
    optimizers = given.task.optimizers(
        model, lambda module: make if isinstance(make, Optimizer) else make(module)
    )
    check_optimizers(model, optimizers, settings)
    sampler, loader, eval_loaders = _loaders(given, settings, group)
    _compare(given, settings, attempt, model, optimizers, {"train": loader, **eval_loaders})
    set_train_mode(model)
    check_single_rows(model, given.task, loader, settings, group)
    if settings.train.compile:
        model.compile()
    train_step = TrainStep(
        model, given.task, optimizers, group, train=settings.train, ddp=settings.ddp, seed=settings.seed
    )
    options = {name: configured(each) for name, each in optimizers.items()}  # before a schedule sets some
    total_steps = settings.train.steps or (settings.train.epochs or 1) * sampler.steps_per_epoch
    stopping = settings.train.early_stopping
    return Parts(
        model,
        given.task,
        given.metrics,
        train_step,
        options,
        {name: _schedule(given.scheduler, each, settings, total_steps) for name, each in optimizers.items()},
        EarlyStopping(stopping) if stopping else None,
        sampler,
        loader,
        eval_loaders,
        total_steps,
    )


def _compare(
    given: Ingredients,
    settings: Settings,
    attempt: Attempt,
    model: nn.Module,
    optimizers: Mapping[str, Optimizer],
    loaders: Mapping[str, TrainLoader | EvalLoader],
) -> None:
    datasets = {"train": given.train, "val": given.val, "test": given.test}
    check_same_start(
        attempt.group,
        settings,
        attempt.run,
        model=model,
        optimizers=optimizers,
        datasets={split: datasets[split] for split in loaders},
        loaders=loaders,
        others=(given.task, given.task.loss_function, given.collate, *given.metrics.values()),
    )


def _place(given: Ingredients, settings: Settings, group: Group) -> nn.Module:
    model = given.model
    if settings.ddp.sync_batchnorm and group.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model.to(group.device)
    if settings.train.channels_last:
        to_channels_last(model)
    move_held(given.task, group.device)
    return model


def _check_watched(given: Ingredients, settings: Settings) -> None:
    stopping, best = settings.train.early_stopping, settings.checkpoint.keep_best
    watched = {
        "scheduler.metric": given.scheduler.metric,
        "train.early_stopping.metric": stopping.metric if stopping else None,
        "checkpoint.keep_best.metric": best.metric if best else None,
    }
    check_watched(given.metrics, watched, has_val=given.val is not None)


def _schedule(plan: Scheduler, optimizer: Optimizer, settings: Settings, total_steps: int) -> Schedule:
    make = plan.make
    steps = max(1, total_steps - plan.warmup_steps)

    def checked(target: Optimizer) -> LRScheduler:
        assert make is not None
        schedule = make(target, steps)
        check_built_schedule(schedule, epochs=settings.train.epochs, steps=total_steps)
        return schedule

    return Schedule(
        optimizer,
        checked if make else None,
        warmup_steps=plan.warmup_steps,
        metric=plan.metric,
        total_steps=total_steps,
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
        "finish_later": group.device.type == "cuda",
        "channels_last": settings.train.channels_last,
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
