"""Writes data sets of single samples into one .npz file that Arrays reads: `dist-trainer data pack`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_trainer.errors import DataError


def pack(train: Any, test: Any | None, path: str | Path) -> dict[str, tuple[int, ...]]:
    """Write train_x and train_y, and test_x and test_y where there is a test set; gives each array's shape.

    Samples are (input, target) pairs. Pictures become uint8 arrays of (channels, height, width), tensors and
    arrays stay what they are; all of one set must have the same shape. The file appears whole or not at all.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for split, dataset in (("train", train), ("test", test)):
        if dataset is not None:
            arrays[f"{split}_x"], arrays[f"{split}_y"] = stack(dataset, name=split)
    if isinstance(classes := getattr(train, "classes", None), list | tuple):
        arrays["classes"] = np.array(list(map(str, classes)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return {name: array.shape for name, array in arrays.items()}


def stack(dataset: Any, *, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """All inputs and all targets of a data set as two arrays; DataError names a row that doesn't fit."""
    inputs: NDArray[Any] | None = None
    targets: list[Any] = []
    for row in range(len(dataset)):
        sample = dataset[row]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DataError(f"{name} row {row}: needs an (input, target) pair, got {type(sample).__name__}")
        value = _array(sample[0])
        if inputs is None:
            inputs = np.empty((len(dataset), *value.shape), dtype=value.dtype)
        if value.shape != inputs.shape[1:] or value.dtype != inputs.dtype:
            raise DataError(
                f"{name} row {row}: {value.dtype} of shape {value.shape}, where row 0 has {inputs.dtype} of "
                f"shape {inputs.shape[1:]}; give the data set a transform that makes them alike (Resize)"
            )
        inputs[row] = value
        targets.append(np.asarray(sample[1]))
    if inputs is None:
        raise DataError(f"{name} is empty")
    return inputs, np.stack(targets)


def _array(value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    is_picture = hasattr(value, "getbands")
    if not is_picture:
        return array
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
