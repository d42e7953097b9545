"""What one rank does to evaluate or predict with a run's checkpoint; nothing of the run is changed.

The launcher writes request.json into a scratch run folder, starts workers on that, and finds result.json
(and for a prediction the output file) when they are done.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_trainer.adapters.allocator import keep_freed_memory
from dist_trainer.adapters.distributed import Group, join
from dist_trainer.adapters.files import replace_file
from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.checkpoint.state import decode
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.config.load import read_config
from dist_trainer.config.schema import Config
from dist_trainer.config.targets import build
from dist_trainer.errors import ConfigError, CorruptCheckpoint, DataError, UsageError
from dist_trainer.inference_request import RESULT, Request
from dist_trainer.run_folder import RunFolder
from dist_trainer.shown_samples import ABOUT, SAMPLE_INPUT, SAMPLE_ROW, TRUTH, with_samples
from dist_trainer.training.evaluation import evaluate, joined, predict
from dist_trainer.training.loader import EvalLoader
from dist_trainer.training.memory_format import to_channels_last
from dist_trainer.training.metrics import as_metrics
from dist_trainer.training.step import autocast_for
from dist_trainer.training.task import Task, move_held
from dist_trainer.worker import build_datasets, build_model, build_task

_TAKEN = {"row", "file", "allow_pickle"}  # our own array, and the arguments of numpy.savez
_TAKEN_TO_SHOW = {TRUTH, ABOUT, SAMPLE_ROW, SAMPLE_INPUT}  # our own in a file that a page is made of


def main(scratch_folder: str) -> None:
    """Carry out the request in a scratch run folder, as one rank."""
    scratch = Path(scratch_folder)
    request = Request.read(scratch)
    run = RunFolder.open(request.run)
    config = read_config(run.config_path)
    model, (task, metrics) = build_model(config), build_task(config)
    dataset = _dataset(config, request.split)
    group = join(config.launch.device, timeout_s=config.launch.timeout_s)
    if group.device.type == "cpu":
        keep_freed_memory()
    checkpoint = _load(run, config, request.checkpoint, model, group)
    model.to(group.device)
    if config.train.channels_last:
        to_channels_last(model)
    move_held(task, group.device)
    loader = make_loader(config, dataset, request.split, group)
    try:
        if request.output is None:
            result = _evaluate(config, model, task, metrics, loader, group)
        else:
            found = _predict(config, model, task, loader, group, scratch, targets=request.samples > 0)
            result = _write(config, request, dataset, checkpoint, found) if group.is_rank_zero else {}
    finally:
        loader.close()
    if group.is_rank_zero:
        named = (
            {f"{request.split}/{name}": value for name, value in result.items()}
            if not request.output
            else result
        )
        document = {"step": checkpoint.step, "checkpoint": checkpoint.name, "results": named}
        replace_file(scratch / RESULT, json.dumps(document).encode())
    group.leave()


def _dataset(config: Config, split: str) -> Any:
    datasets = build_datasets(config)
    if datasets.get(split) is None:
        there = ", ".join(name for name, dataset in datasets.items() if dataset is not None)
        raise UsageError(f"--split {split}: the run has no data.{split}; it has {there}")
    return datasets[split]


def _load(run: RunFolder, config: Config, wanted: str, model: nn.Module, group: Group) -> Checkpoint:
    """Load a checkpoint's weights: with train.ema_decay their average, as the run's evaluations do. Collective.

    Rank 0 chooses: the run may be training, and another rank would find a newer one a moment later.
    """
    store = open_store(run, config.checkpoint)
    checkpoint = store.get(group.from_rank_zero(lambda: choose(store.list(), wanted, config.checkpoint).name))
    load_weights_of(store, checkpoint, model)
    return checkpoint


def load_weights_of(store: CheckpointStore, checkpoint: Checkpoint, model: nn.Module) -> bool:
    """Load what the run's evaluations use of a checkpoint, every byte verified: whether it is the average of weights
    over the training. Raises CorruptCheckpoint."""
    try:
        weights, training = decode(store.read(checkpoint))
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{error}; `dist-trainer checkpoint verify` finds the whole ones") from error
    model.load_state_dict(weights)
    if training["average"]:
        model.load_state_dict(training["average"], strict=False)
    return bool(training["average"])


def make_loader(config: Config, dataset: Any, split: str, group: Group) -> EvalLoader:
    """This rank's part of a split, in batches of training's size."""
    data, ranks = config.data, group.world_size
    return EvalLoader(
        dataset,
        rank=group.rank,
        world_size=ranks,
        batch_size=data.eval_batch_size
        or -(-data.global_batch_size // (ranks * config.train.accumulate_steps)),
        num_workers=data.num_workers,
        collate=build(data.collate) if data.collate else None,
        bad_rows=data.bad_rows,
        seed=config.seed,
        pin_memory=group.device.type == "cuda",
        finish_later=group.device.type == "cuda",
        channels_last=config.train.channels_last,
        name=f"data.{split}",
    )


def _evaluate(
    config: Config, model: nn.Module, task: Task, metrics: Mapping[str, Any], loader: EvalLoader, group: Group
) -> dict[str, float]:
    autocast = _autocast(config, group)
    values = evaluate(model, task, as_metrics(metrics), loader, group, autocast=autocast)
    assert values is not None, "nobody interrupts this evaluation"
    return values


def _autocast(config: Config, group: Group) -> Callable[[], Any]:
    return lambda: autocast_for(config.train.precision, group.device)


@torch.no_grad()
def _predict(
    config: Config,
    model: nn.Module,
    task: Task,
    loader: EvalLoader,
    group: Group,
    scratch: Path,
    *,
    targets: bool,
) -> dict[str, NDArray[Any]]:
    """Each rank writes its rows into the scratch folder; rank 0 puts all into the data set's order. Collective."""
    autocast = _autocast(config, group)
    indices, arrays, truth = predict(model, task, loader, group.device, autocast=autocast, targets=targets)
    if taken := sorted((_TAKEN | (_TAKEN_TO_SHOW if targets else set())) & arrays.keys()):
        raise ConfigError(
            f"task.target {config.task.target}: its prediction has the name {', '.join(taken)}, which a file of "
            "predictions needs itself; give it another name in Task.prediction"
        )
    arrays |= {} if truth is None else {TRUTH: truth}
    np.savez(scratch / f"part-{group.rank}.npz", allow_pickle=False, **arrays, row=indices)
    group.barrier()
    if not group.is_rank_zero:
        return {}
    parts = [
        dict(np.load(scratch / f"part-{rank}.npz", allow_pickle=False)) for rank in range(group.world_size)
    ]
    return _merged(parts, targets=targets)


def _merged(parts: Sequence[dict[str, NDArray[Any]]], *, targets: bool) -> dict[str, NDArray[Any]]:
    """All ranks' rows in the data set's order; with the targets where every rank that has rows has them alike."""
    of_ranks = [part.pop(TRUTH, None) if targets else None for part in parts]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    truth = joined([each for each, part in zip(of_ranks, parts, strict=True) if len(part["row"])])
    if truth is not None:
        merged[TRUTH] = truth
    order = np.argsort(merged["row"], kind="stable")
    return {name: values[order] for name, values in merged.items()}


def _write(
    config: Config, request: Request, dataset: Any, checkpoint: Checkpoint, arrays: dict[str, NDArray[Any]]
) -> dict[str, float]:
    """The file of all rows, on rank 0; with what a page shows of them where that was asked for."""
    assert request.output is not None
    rows = arrays["row"]
    if config.data.bad_rows == "raise" and not np.array_equal(rows, np.arange(len(dataset))):
        raise DataError(f"the prediction has {len(rows)} rows of {len(dataset)}")
    if request.samples:
        about = {"step": checkpoint.step, "checkpoint": checkpoint.name, "split": request.split}
        arrays = with_samples(arrays, dataset, about, most=request.samples)
    write_predictions(Path(request.output), arrays)
    return {"rows": float(len(rows))}


def write_predictions(output: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An .npz of the arrays, or a .csv with one line a row and one column a number. UsageError for other names."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".npz":
        np.savez(output, allow_pickle=False, **dict(arrays))
        return
    if output.suffix != ".csv":
        raise UsageError(f"--output {output}: predictions are written as .npz or .csv")
    columns: dict[str, NDArray[Any]] = {"row": arrays["row"]}
    for name, values in arrays.items():
        flat = values.reshape(len(values), -1)
        if name != "row":
            columns |= {
                f"{name}_{i}" if flat.shape[1] > 1 else name: flat[:, i] for i in range(flat.shape[1])
            }
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
