"""What a run's model is called with: its task's own call, recorded on a few rows of the run's data."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_trainer.config.schema import Config
from dist_trainer.config.targets import build
from dist_trainer.errors import DataError, ExportError
from dist_trainer.export.request import BATCH_SIZES
from dist_trainer.training.batch import field_names, is_record, mapped, tensors_of
from dist_trainer.training.fetch import Fetcher
from dist_trainer.training.loader import EVALUATION_EPOCH
from dist_trainer.training.sampler import Rows
from dist_trainer.training.task import Task

_LOOKED_AT = 64  # rows among which there have to be some that can be read


@dataclass(frozen=True)
class Call:
    """One call of the model: as many arguments by position as go, and its outputs in full precision."""

    rows: int
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    named: dict[str, Any]  # the same arguments, all by their names in the model's forward
    outputs: list[Tensor]


class _Recorded(Exception):
    """The model was called; nothing more is to happen."""


def example_calls(config: Config, model: nn.Module, task: Task, datasets: Mapping[str, Any]) -> list[Call]:
    """The model's calls for 1 and for 7 rows, of data.test where there is one, else of val, else of train.

    Raises ExportError where the task does not call the model, DataError where no row can be read.
    """
    name = source_of(datasets)
    fetcher = Fetcher(
        datasets[name],
        collate=build(config.data.collate) if config.data.collate else None,
        bad_rows=config.data.bad_rows,
        seed=config.seed,
        name=f"data.{name}",
    )
    good = _good_rows(fetcher, len(datasets[name]), name)
    return [_call(config, model, task, fetcher, np.resize(good, rows)) for rows in BATCH_SIZES]


def source_of(datasets: Mapping[str, Any]) -> str:
    """The split that examples are taken from."""
    return next(name for name in ("test", "val", "train") if datasets.get(name) is not None)


def _good_rows(fetcher: Fetcher, length: int, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = np.arange(min(length, _LOOKED_AT if fetcher.bad_rows == "skip" else BATCH_SIZES[-1]))
    bad = fetcher.fetch(Rows(EVALUATION_EPOCH, rows, rows)).bad if len(rows) else []
    good = np.setdiff1d(rows, np.array(bad, dtype=np.int64))
    if not len(good):
        raise DataError(f"data.{name} has no row that can be read among its first {len(rows)}")
    return good


def _call(config: Config, model: nn.Module, task: Task, fetcher: Fetcher, rows: Any) -> Call:
    batch = fetcher.fetch(Rows(EVALUATION_EPOCH, np.arange(len(rows)), rows)).data
    args, keywords = _recorded(config, model, task, batch)
    bound = inspect.signature(model.forward).bind(*args, **keywords)
    with torch.no_grad():
        output = model(*mapped(bound.args, torch.clone), **mapped(bound.kwargs, torch.clone))
    outputs = list(tensors_of(output))
    if not outputs:
        raise ExportError(f"the model gives a {type(output).__name__} without a tensor, and that is no model")
    return Call(len(rows), bound.args, bound.kwargs, dict(bound.arguments), outputs)


def _recorded(
    config: Config, model: nn.Module, task: Task, batch: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append((mapped(args, torch.clone), mapped(keywords, torch.clone)))
        raise _Recorded

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            task.forward(model, batch)
    except _Recorded:
        return seen[0]
    finally:
        hook.remove()
    raise ExportError(
        f"task.target {config.task.target}: its forward does not call the model itself, so what the model takes is "
        "not known; put what is to be exported into the model's own forward"
    )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in an argument or in all of them, each with a name made of where it is: pair_0, options_mask."""
    if isinstance(value, Tensor):
        yield name, value
    elif is_record(value):
        for field in field_names(value):
            yield from leaves(getattr(value, field), f"{name}_{field}" if name else field)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}_{index}" if name else str(index))
