"""Exact evaluation and prediction: every row once, sums and counts, one reduction at the end."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_trainer.adapters.distributed import Group
from dist_trainer.config.schema import TrainConfig
from dist_trainer.errors import DataError
from dist_trainer.training.loader import EvalLoader
from dist_trainer.training.metrics import Metric
from dist_trainer.training.task import Task

_COMPLETE, _BAD_ROWS, _LOSS, _WEIGHT = range(4)


def evaluate(
    model: nn.Module,
    task: Task,
    metrics: Mapping[str, Metric],
    loader: EvalLoader,
    group: Group,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The loss and each metric over all rows of the data set, or None where a rank was interrupted. Collective.

    Rank 0's buffers are broadcast first: after training each rank has batch statistics of its own. A rank that
    is interrupted, asked after each batch, still enters the one reduction, so none waits for it; then every rank
    discards the result.
    """
    group.broadcast(model.buffers())
    with undisturbed(model, task):
        model.eval()
        head, own = _sums(model, task, metrics, loader, group.device, autocast, interrupted)
    total = group.sum_over_ranks(torch.cat([head, *own]))
    head, *sums = torch.split(total, [len(part) for part in (head, *own)])
    if int(head[_COMPLETE]) < group.world_size:
        return None
    return _values(head, dict(zip(metrics, sums, strict=True)), metrics, averaged=task.averaged)


def is_due(train: TrainConfig, step: int, total_steps: int, steps_per_epoch: int) -> bool:
    """Whether an evaluation belongs to this step: as often as configured, and at the end."""
    every = [train.eval_every_steps, train.eval_every_epochs and train.eval_every_epochs * steps_per_epoch]
    return step > 0 and (step == total_steps or any(number and step % number == 0 for number in every))


@contextmanager
def undisturbed(model: nn.Module, task: Task) -> Iterator[None]:
    """After this block each module's mode, and what the task carries, are as before."""
    modes = [(module, module.training) for module in model.modules()]
    carried = copy.deepcopy(task.state_dict())
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if carried:
            task.load_state_dict(carried)


@torch.no_grad()
def _sums(
    model: nn.Module,
    task: Task,
    metrics: Mapping[str, Metric],
    loader: EvalLoader,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    interrupted: Callable[[], bool],
) -> tuple[Tensor, list[Tensor]]:
    head = torch.zeros(4, dtype=torch.float64, device=device)
    parts: dict[str, Tensor] = {}
    for _, batch in loader if len(loader) else [loader.empty()]:
        data = batch.on(device).data
        with autocast():
            output = task.forward(model, data)
            loss, weight = task.loss(output, data)
        if batch.rows:
            head[_LOSS] += loss
            head[_WEIGHT] += weight
        head[_BAD_ROWS] += len(batch.bad)
        target = task.target(data)
        for name, metric in metrics.items():
            measured = metric.measure(_full_precision(output), target).double().cpu()
            parts[name] = parts[name] + measured if name in parts else measured
        if interrupted():
            break
    else:
        head[_COMPLETE] = 1
    # a rank without rows has measured an empty batch, so that the parts' lengths are the same everywhere
    return head.cpu(), [parts[name] for name in metrics]


def _full_precision(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, Mapping):
        return {name: _full_precision(value) for name, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(_full_precision(value) for value in output)
    return output


def _values(
    head: Tensor, sums: Mapping[str, Tensor], metrics: Mapping[str, Metric], *, averaged: bool
) -> dict[str, float]:
    loss, weight = float(head[_LOSS]), float(head[_WEIGHT])
    values = {"loss": (loss / weight if weight else math.nan) if averaged else loss}
    values |= {name: metric.compute(sums[name]) for name, metric in metrics.items()}
    if head[_BAD_ROWS]:
        values["bad_rows"] = float(head[_BAD_ROWS])
    return values


@torch.no_grad()
def predict(
    model: nn.Module,
    task: Task,
    loader: EvalLoader,
    device: torch.device,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    targets: bool = False,
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[Any] | None]:
    """This rank's share of the predictions: the rows' indices in the data set, one array a name, and the targets.

    Those are None unless `targets` asks for them, and where they are no array with one row per sample. Raises
    DataError where the task's prediction is none.
    """
    model.eval()
    indices: list[NDArray[np.int64]] = []
    outputs: dict[str, list[NDArray[Any]]] = {}
    meant: list[NDArray[Any] | None] = []
    for rows, batch in loader if len(loader) else [loader.empty()]:
        data = batch.on(device).data
        with autocast():
            prediction = task.prediction(task.forward(model, data))
        named = prediction if isinstance(prediction, Mapping) else {"prediction": prediction}
        for name, value in named.items():
            if len(value) != len(rows):
                raise DataError(
                    f"the prediction {name!r} has {len(value)} rows for a batch of {len(rows)}; "
                    "Task.prediction gives one row per sample"
                )
            outputs.setdefault(name, []).append(_array(value))
        meant.append(_one_a_row(task.target(data), len(rows)) if targets else None)
        indices.append(rows)
    return np.concatenate(indices), {name: _whole(name, outputs[name]) for name in outputs}, joined(meant)


def joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """All parts as one array; None where one is missing, or has rows of another shape."""
    given = [part for part in parts if part is not None]
    if len(given) < len(parts) or len({part.shape[1:] for part in given}) != 1:
        return None
    return np.concatenate(given)


def _whole(name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    whole = joined(parts)
    if whole is None:
        shapes = ", ".join(sorted({str(part.shape[1:]) for part in parts}))
        raise DataError(
            f"the prediction {name!r} has rows of several shapes, {shapes}; Task.prediction gives all the same"
        )
    return whole


def _one_a_row(target: Any, rows: int) -> NDArray[Any] | None:
    if not isinstance(target, Tensor) or target.dim() == 0 or len(target) != rows:
        return None
    return _array(target)


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = _full_precision(values).cpu().numpy()
    return array
