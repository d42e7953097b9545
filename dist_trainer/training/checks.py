"""What a combination of model, data and settings cannot do, found before the first step."""

from typing import Any

import torch
from torch import Tensor, nn

from dist_trainer.adapters.distributed import Group
from dist_trainer.config.schema import Settings
from dist_trainer.errors import ConfigError
from dist_trainer.training.loader import TrainLoader
from dist_trainer.training.task import Task, move_to


def check_combination(model: nn.Module, settings: Settings, group: Group, optimizers: int) -> None:
    """Raise ConfigError for settings that cannot work together on this device."""
    if settings.ddp.sync_batchnorm and group.device.type == "cpu":
        raise ConfigError(
            "ddp.sync_batchnorm needs CUDA: torch has no SyncBatchNorm for the CPU; set it to false"
        )
    if settings.ddp.static_graph and optimizers > 1:
        raise ConfigError(
            f"ddp.static_graph is on, and the task has {optimizers} optimizers whose phases use different "
            "parameters; set ddp.static_graph=false"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("the model has no parameter that can be trained")


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
    few: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].shape[0]
        if module.training and inputs[0].numel() == rows * inputs[0].shape[1]:
            few.append(module)

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            batch = next(batch for batch in loader.read(0) if batch.rows > 1)
            task.forward(model, move_to(batch.data, device))
    except StopIteration:
        return True  # every micro-batch has one row; be strict where nothing can be looked at
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return bool(few)
