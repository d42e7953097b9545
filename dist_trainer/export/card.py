"""export.json: what somebody with an exported model's file alone has to know to use it.

{"format": 1, "run", "run_id", "step", "checkpoint": its folder's name, "checkpoint_sha256": of its manifest,
 "weights": "trained" | "averaged", "trained_with": precision, "torch": version,
 "exported_as": "onnx", "method": "trace" | "script" | null, "files": {name: {"size", "sha256"}},
 "inputs": [{"name", "shape": ["batch", 64], "dtype", "given": "by position" | "by name"}], "outputs": [...],
 "classes": [names] | null, "preprocessing": [steps, in order] | null, "data": {"split", "dataset": its section},
 "checked": {"batch_sizes", "tolerance", "largest_difference", "what", "without_dist_trainer"}}

While the files are moved to their place it is {"run_id", "unfinished": what to do, "files": {name: null}}.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dist_trainer.checkpoint.manifest import Checkpoint
from dist_trainer.config.redact import redact_value
from dist_trainer.config.schema import Config, Target
from dist_trainer.export.example import Call, source_of
from dist_trainer.export.request import Request
from dist_trainer.export.shapes import described_inputs, described_outputs
from dist_trainer.run_folder import RunFolder
from dist_trainer.shown_samples import class_names

FORMAT = 1


def make_card(
    request: Request, config: Config, checkpoint: Checkpoint, calls: list[Call], datasets: Mapping[str, Any]
) -> dict[str, Any]:
    """All but what the writer knows of the checkpoint, and what is known only after the file was compared."""
    run, split = RunFolder(Path(request.run)), source_of(datasets)
    return {
        "format": FORMAT,
        "run": run.path.name,
        "run_id": run.info().run_id,
        "step": checkpoint.step,
        "checkpoint": checkpoint.name,
        "trained_with": config.train.precision,
        "torch": torch.__version__,
        "exported_as": request.format,
        "method": request.method if request.format == "torchscript" else None,
        "inputs": described_inputs(calls),
        "outputs": described_outputs(calls),
        "classes": class_names(datasets[split]),
        "preprocessing": preprocessing(datasets[split]),
        "data": described_data(config, split),
    }


def described_data(config: Config, split: str) -> dict[str, Any]:
    """The split that the example rows are of, and its data set: that of data.train where data.split holds it out."""
    return {"split": split, "dataset": shown(getattr(config.data, split) or config.data.train)}


def preprocessing(dataset: Any) -> Any:
    """What the data set does to a raw sample: its `preprocessing`, or the text of a torchvision `transform`."""
    whole = _whole(dataset)
    if (said := getattr(whole, "preprocessing", None)) is not None:
        return said
    transform = getattr(whole, "transform", None)
    return [{"transform": repr(transform)}] if transform is not None else None


def _whole(dataset: Any) -> Any:
    """The data set that this is a part of: ours and torch's Subset keep it in the same place."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def shown(target: Target) -> dict[str, Any]:
    """A target as it is configured, without secrets."""
    return {key: _redacted(key, value) for key, value in target.model_dump().items()}


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redacted(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(key, item) for item in value]
    text = value if isinstance(value, str) else json.dumps(value, default=str)  # a password may be a number
    shown = redact_value(key, text)
    return value if shown == text else shown
