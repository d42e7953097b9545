"""What one rank does, in order: read the run's configuration, build what it names, train.

Started by our agent, or by torchrun: `torchrun --nproc-per-node 2 -m dist_trainer.worker RUN`. It needs
nothing but the run folder and torchrun's environment variables.
"""

import os
import random
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dist_trainer.adapters.distributed import PeerFailed
from dist_trainer.adapters.lazy_compiler import defer
from dist_trainer.adapters.place import Place
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.weights import start_from
from dist_trainer.config.arguments import WEIGHT_FILES
from dist_trainer.config.load import read_config
from dist_trainer.config.redact import redact
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import Config, DataSettings, SchedulerConfig, Settings
from dist_trainer.config.targets import build, fill, import_target
from dist_trainer.data.split import split_dataset
from dist_trainer.errors import ConfigError, DistTrainerError, LeftEarly, StorageError
from dist_trainer.run_folder import RunFolder, Status, find_run
from dist_trainer.tracking.heartbeat import read_heartbeat
from dist_trainer.training.attempt import Attempt, beat_once
from dist_trainer.training.optimizer import check_schedule_unit, fill_schedule_length, make_optimizer
from dist_trainer.training.stop import Signals
from dist_trainer.training.task import Task
from dist_trainer.training.trainer import Scheduler, Trainer


def main(run_folder: str) -> None:
    """Train the run as one of its ranks; raises what went wrong."""
    signals = Signals()  # before anything slow: a request during start-up is kept
    run, place = RunFolder.open(run_folder), Place.from_environment()
    if place.fence is not None:
        beat_once(run, place.rank, place.fence, "start-up")
    make_trainer(run, signals).fit()


def make_trainer(run: RunFolder, signals: Signals) -> Trainer:
    """Build what the run's configuration names."""
    config = read_config(run.config_path)
    model = build_model(config)
    task, metrics = build_task(config)
    datasets = build_datasets(config)
    return Trainer(
        model,
        task=task,
        metrics=metrics,
        optimizer=partial(build_optimizer, config),
        scheduler=build_scheduler(config),
        collate=build(config.data.collate) if config.data.collate else None,
        hooks=[build(hook) for hook in config.hooks],
        settings=settings_of(config),
        run=run,
        signals=signals,
        **datasets,
    )


def settings_of(config: Config) -> Settings:
    """The configuration without the objects it names."""
    fields = {name: getattr(config, name) for name in Settings.model_fields}
    fields["data"] = DataSettings(**{name: getattr(config.data, name) for name in DataSettings.model_fields})
    return Settings.model_construct(**fields)


def build_model(config: Config) -> nn.Module:
    """The model with its first weights: the same on every rank, drawn from the seed."""
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    weights = resolve(config.model.weights)
    if weights is None or not weights.endswith(WEIGHT_FILES):
        extra = {} if weights is None else {"weights": weights}
        model: nn.Module = build(config.model, **extra)
    else:
        model = build(config.model)
        start_from(model, weights)
    return model


def build_task(config: Config) -> tuple[Task, dict[str, Any]]:
    """The task with its loss, and the metrics by name."""
    loss = build(config.loss) if config.loss else None
    task = fill(config.task, loss=loss)
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.target {config.task.target} is no subclass of dist_trainer.training.task.Task"
        )
    return task, {name: build(metric) for name, metric in config.metrics.items()}


def build_datasets(config: Config) -> dict[str, Any]:
    """train, val and test, with what data.split holds out of train."""
    data = config.data
    datasets = {
        name: build(getattr(data, name)) if getattr(data, name) else None for name in ("train", "val", "test")
    }
    if data.split:
        fractions = {
            name: share for name, share in (("val", data.split.val), ("test", data.split.test)) if share
        }
        datasets |= split_dataset(datasets["train"], fractions, config.seed)
    return datasets


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The configured optimizer over a module's parameters, in its groups."""
    arguments = config.optimizer.arguments
    factory = partial(_call_optimizer, config)
    plan = config.optimizer
    return make_optimizer(factory, model, plan.groups, arguments.get("lr"), name=plan.target)


def _call_optimizer(config: Config, parameters: Any) -> Optimizer:
    optimizer: Optimizer = build(config.optimizer, parameters)
    return optimizer


def build_scheduler(config: Config) -> Scheduler | None:
    """The configured schedule; a length it needs and was not given is the run's."""
    plan = config.scheduler
    if plan is None:
        return None
    make = partial(_make_schedule, config, plan) if plan.target else None
    return Scheduler(make, plan.warmup_steps, plan.metric)


def _make_schedule(config: Config, plan: SchedulerConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    assert plan.target is not None
    target = import_target(plan.target)
    arguments = fill_schedule_length(target, plan.arguments, steps)
    check_schedule_unit(
        plan.target.rpartition(".")[2], plan.arguments, epochs=config.train.epochs, steps=steps
    )
    schedule: LRScheduler = build({"target": plan.target, **arguments}, optimizer)
    return schedule


def fail(run: RunFolder, error: BaseException, attempt: Attempt | None) -> NoReturn:
    """Leave word of the error and go, without waiting for threads or peers that may be stuck.

    `attempt` is the one this rank took part in. Without one the run is left as it is: another process may be
    training it, which is why this one was refused.
    """
    place = Place.from_environment()
    code = error.exit_code if isinstance(error, DistTrainerError) else 1
    if not isinstance(error, PeerFailed):
        if attempt is not None:
            with suppress(OSError, StorageError):  # a full disk may be the error
                _leave_word(run, error, attempt, code)
        if isinstance(error, DistTrainerError):
            sys.stderr.write(redact(f"rank {place.rank}: {error}\n"))
        else:
            sys.stderr.write(redact("".join(traceback.format_exception(error))))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_word(run: RunFolder, error: BaseException, attempt: Attempt, code: int) -> None:
    rank = attempt.group.rank
    beat = read_heartbeat(run.heartbeat_path(rank))
    step = beat.trained_step if beat and beat.attempt == attempt.number else None
    run.write_error(attempt.number, rank, error=error, step=step, exit_code=code)
    if run.highest_fence() == attempt.number:  # else a newer attempt says how the run is
        run.write_status(Status("failed", str(error), step))


def _main_of_torchrun() -> None:
    keep_private()
    defer()
    if len(sys.argv) != 2:
        sys.exit(
            "usage: torchrun [...] -m dist_trainer.worker RUN    (a run folder, or a run's name in runs/)"
        )
    try:
        run = find_run(sys.argv[1], Path("runs"))
    except DistTrainerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    folder = run.info().working_folder
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    trainer: Trainer | None = None
    try:
        signals = Signals()
        trainer = make_trainer(run, signals)
        trainer.fit()
    except SystemExit as error:  # the user's code, in the middle of it
        fail(run, LeftEarly(error), getattr(trainer, "attempt", None))
    except Exception as error:
        fail(run, error, getattr(trainer, "attempt", None))


if __name__ == "__main__":
    _main_of_torchrun()
