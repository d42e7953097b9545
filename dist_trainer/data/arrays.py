"""Arrays in one .npz file, read into memory: images, features or tokens with their targets."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_trainer.data.augment import Augmentation, Normalize
from dist_trainer.data.memory import InMemory
from dist_trainer.errors import DataError

_WAY = "`dist-trainer data pack` or numpy.savez writes one"


class Arrays(InMemory):
    """One split of an .npz file: arrays `train_x` and `train_y` (or `x_train`, `y_train`, as Keras has them),
    likewise for other splits, or just `x` and `y`.

    Images are (rows, channels, height, width); `channels_last` says that the channels are at the end.
    uint8 inputs become floats from 0 to 1. `normalize` is {mean, std} in that scale, each one number or one
    per channel; "auto" takes them from the training rows of the file. Text targets become class numbers in
    sorted order (`classes`). `limit` takes the first rows only.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        normalize: Mapping[str, Any] | Literal["auto"] | None = None,
        augment: Sequence[Augmentation] = (),
        channels_last: bool = False,
        limit: int | None = None,
    ) -> None:
        arrays = read_arrays(path)
        inputs = _channels_first(_find(arrays, path, "x", split), channels_last)
        targets = _find(arrays, path, "y", split)
        self.classes: list[str] | None = None
        if targets.dtype.kind == "U":
            names, targets = np.unique(targets, return_inverse=True)
            self.classes = names.tolist()
        if normalize == "auto":
            has_train = any(name in arrays for name in _names("x", "train"))
            train = _find(arrays, path, "x", "train") if has_train else inputs
            normalize = statistics(_channels_first(train, channels_last) if has_train else train)
        normalizer = Normalize(**normalize) if normalize else None
        super().__init__(inputs[:limit], targets[:limit], augment=augment, normalize=normalizer)


def read_arrays(path: str | Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz file, each read when asked for; DataError says what is wrong with it."""
    if not Path(path).exists():
        raise DataError(f"{path}: no such file; {_WAY}")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz file ({error}); {_WAY}") from error
    if not isinstance(arrays, Mapping):
        raise DataError(f"{path}: one array, not an .npz file with inputs and targets; {_WAY}")
    return arrays


def statistics(inputs: NDArray[Any]) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel (dimension 1), bytes counted as 0 to 1."""
    means, deviations = [], []
    for channel in range(inputs.shape[1] if inputs.ndim > 1 else 1):
        values = inputs[:, channel] if inputs.ndim > 1 else inputs
        scale = 255.0 if inputs.dtype == np.uint8 else 1.0
        means.append(float(values.mean(dtype=np.float64)) / scale)
        deviations.append(max(float(values.std(dtype=np.float64)) / scale, 1e-8))
    return {"mean": means, "std": deviations}


def _channels_first(inputs: NDArray[Any], channels_last: bool) -> NDArray[Any]:
    return np.moveaxis(inputs, -1, 1) if channels_last else inputs


def _names(kind: str, split: str | None) -> list[str]:
    return [f"{split}_{kind}", f"{kind}_{split}"] if split else [kind]


def _find(arrays: Mapping[str, NDArray[Any]], path: str | Path, kind: str, split: str | None) -> NDArray[Any]:
    wanted = _names(kind, split)
    for name in wanted:
        if name in arrays:
            try:
                return arrays[name]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(f"{path}: array {name} cannot be read: {error}") from error
    shapes = ", ".join(f"{name} {arrays[name].shape}" for name in arrays) or "nothing"
    splits = sorted({name.removesuffix("_x") for name in arrays if name.endswith("_x")})
    remedy = f"; set split to one of {', '.join(splits)}" if splits else ""
    raise DataError(f"{path}: needs the array {' or '.join(wanted)}, holds {shapes}{remedy}")
