"""What a combination of model, data and settings cannot do, found before the first step."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_trainer.adapters.distributed import Group
from dist_trainer.config.schema import Settings
from dist_trainer.errors import ConfigError
from dist_trainer.training.evaluation import undisturbed
from dist_trainer.training.loader import TrainLoader
from dist_trainer.training.optimizer import needs_closure
from dist_trainer.training.task import Task


def check_model(model: nn.Module, task: Task, settings: Settings, device: torch.device) -> None:
    """Raise ConfigError for what the model or the loss has, and the settings or the device do not allow."""
    if settings.ddp.sync_batchnorm and device.type == "cpu":
        raise ConfigError(
            "ddp.sync_batchnorm needs CUDA: torch has no SyncBatchNorm for the CPU; set it to false"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("the model has no parameter that can be trained")
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True:
            raise ConfigError(
                f"the model's {name or type(module).__name__} makes sparse gradients, which can be neither "
                "scaled nor clipped together with the others; build it with sparse=False"
            )
    loss = getattr(task, "loss_function", None)
    if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise ConfigError(
            f"loss: {type(loss).__name__} has parameters of its own, which no optimizer or checkpoint would see; "
            "make them part of the model"
        )


def check_optimizers(model: nn.Module, optimizers: Mapping[str, Optimizer], settings: Settings) -> None:
    """Raise ConfigError for optimizers that would not train this model."""
    if settings.ddp.static_graph and len(optimizers) > 1:
        raise ConfigError(
            f"ddp.static_graph is on, and the task has {len(optimizers)} optimizers whose phases use different "
            "parameters; set ddp.static_graph=false"
        )
    own = {id(parameter) for parameter in model.parameters()}
    for phase, optimizer in optimizers.items():
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer must be a torch.optim.Optimizer, or a function that makes one for a module; "
                f"for {phase!r} it gave {type(optimizer).__name__}"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if settings.train.channels_last and needs_closure(optimizer):
            raise ConfigError(
                f"train.channels_last: {type(optimizer).__name__} takes gradients apart in the usual memory format; "
                "leave it out, or use another optimizer"
            )
        if any(id(parameter) not in own for parameter in parameters):
            raise ConfigError(
                f"optimizer: {type(optimizer).__name__} holds parameters that are not the model's; make it from "
                "the model that is given to the Trainer"
            )


def check_watched(metrics: Collection[str], watched: Mapping[str, str | None], *, has_val: bool) -> None:
    """Raise ConfigError where something waits for a metric that no evaluation gives; `watched` is by key."""
    known = {"val/loss", *(f"val/{name}" for name in metrics)} if has_val else set()
    for key, metric in watched.items():
        if metric is not None and metric not in known:
            given = f"gives {', '.join(sorted(known))}" if has_val else "there is none without data.val"
            raise ConfigError(f"{key} is {metric}; an evaluation {given}")


def check_single_rows(
    model: nn.Module, task: Task, loader: TrainLoader, settings: Settings, group: Group
) -> None:
    """Raise ConfigError where a batch norm will meet a micro-batch of one row, and cannot average over it.

    It would fail on that rank alone, and hang the others. Which norms mind is found by looking at the shapes
    that one row gives them: those that average over rows only.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms or isinstance(norms[0], nn.SyncBatchNorm):
        return
    rows = single_row_step(loader, group.world_size)
    if rows is None or not _fails_on_one_row(model, norms, task, loader, group.device):
        return
    raise ConfigError(
        f"data.global_batch_size {settings.data.global_batch_size} leaves a micro-batch of one row in step {rows} "
        f"of each epoch ({group.world_size} ranks, train.accumulate_steps {settings.train.accumulate_steps}), and "
        "the model's batch norm needs two; set data.drop_last=true if it is the epoch's last step, or change "
        "the batch size"
    )


def single_row_step(loader: TrainLoader, world_size: int) -> int | None:
    """The first step of an epoch in which some rank has a micro-batch of one row; None if there is none."""
    sampler = loader.sampler
    for step in sorted({0, sampler.steps_per_epoch - 1}):
        rows = sampler.global_rows(step)
        for rank in range(world_size):
            share = len(range(rank, rows, world_size))
            size, larger = divmod(share, sampler.accumulate_steps)
            sizes = {size + 1} if larger else set()
            sizes |= {size} if larger < sampler.accumulate_steps else set()
            if 1 in sizes:
                return step
    return None


def _fails_on_one_row(
    model: nn.Module, norms: list[Any], task: Task, loader: TrainLoader, device: torch.device
) -> bool:
    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].shape[0]
        if module.training and inputs[0].numel() == rows * inputs[0].shape[1]:
            raise _AveragesOverRows

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), undisturbed(model, task):
            for batch in loader.read_apart(0):
                if batch.rows:
                    task.forward(model, batch.on(device).data)
                    break
    except _AveragesOverRows:
        return True
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return False


class _AveragesOverRows(Exception):
    """Ends the look at a model: more is not needed."""
