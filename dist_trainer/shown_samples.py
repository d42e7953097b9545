"""What of a prediction a page shows: which class was meant and which said, and the samples worth looking at.

A file of predictions that is made to be shown holds, beside what `predict` writes, `truth` (the targets), a few
samples (`sample_row`, `sample_input`) and `about`: a JSON text with step, checkpoint, split and class names.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRUTH, ABOUT, SAMPLE_ROW, SAMPLE_INPUT = "truth", "about", "sample_row", "sample_input"
_MOST_BYTES = 16 << 20  # of one sample's input
Arrays = Mapping[str, NDArray[Any]]


def with_samples(
    arrays: Arrays, dataset: Any, about: Mapping[str, Any], *, most: int
) -> dict[str, NDArray[Any]]:
    """The arrays of all rows, with what a page shows beside them: `most` samples, and `about` with class names."""
    shown = arrays["row"][rows_to_show(arrays, most)]
    inputs = inputs_of(dataset, shown)
    said = json.dumps({**about, "classes": class_names(dataset)})
    found = {**arrays, ABOUT: np.array(said), SAMPLE_ROW: shown}
    return found if inputs is None else {**found, SAMPLE_INPUT: inputs}


def as_classes(arrays: Arrays) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The class that was said and the true one of each row, -1 where there is none; None where targets are no
    classes. Two classes may be told by one number: a probability, or a logit where one is out of 0 to 1."""
    truth = arrays.get(TRUTH)
    if truth is None or truth.size != len(truth) or not len(truth):
        return None
    truth, scores, said = truth.reshape(-1), arrays.get("prediction"), arrays.get("class")
    if truth.dtype.kind in "iub" and said is not None and said.shape == truth.shape:
        return _whole(said), _whole(truth)
    if truth.dtype.kind in "iub" and scores is not None and scores.ndim == 2 and scores.shape[1] > 1:
        return _whole(scores.argmax(axis=1)), _whole(truth)
    if scores is not None and scores.size == len(truth) and set(np.unique(truth)) <= {0, 1}:
        said = scores.reshape(-1) > threshold(scores)
        return np.where(np.isnan(scores.reshape(-1)), -1, _whole(said)), _whole(truth)
    return None


def threshold(scores: NDArray[Any]) -> float:
    """Above which one number means the second class: 0.5 of probabilities, 0 of logits; NaN is neither."""
    numbers = scores[~np.isnan(scores)]
    return 0.5 if (numbers >= 0).all() and (numbers <= 1).all() else 0.0


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.maximum(values.astype(np.int64), -1)


def rows_to_show(arrays: Arrays, most: int) -> NDArray[np.int64]:
    """Numbers of rows in the arrays: the wrong ones first, and of those the surest; then the first right ones."""
    rows = len(arrays["row"])
    classes = as_classes(arrays)
    if classes is None:
        return np.arange(min(most, rows))
    said, truth = classes
    wrong = np.flatnonzero((said != truth) & (truth >= 0))
    surest = wrong[np.argsort(-sureness(arrays)[wrong], kind="stable")]
    right = np.flatnonzero((said == truth) & (truth >= 0))
    return np.concatenate([surest[: most - most // 4], right])[:most]


def sureness(arrays: Arrays) -> NDArray[np.float64]:
    """How sure each row's prediction is: the probability of its class, by softmax or sigmoid where it is none."""
    scores = np.asarray(arrays.get("prediction", np.zeros(len(arrays["row"]))), dtype=np.float64)
    with np.errstate(all="ignore"):
        if scores.ndim == 2 and scores.shape[1] > 1:
            shares = scores if _are_shares(scores) else np.exp(scores - scores.max(axis=1, keepdims=True))
            highest: NDArray[np.float64] = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
            return np.nan_to_num(highest)
        one = scores.reshape(len(scores), -1)[:, 0]
        one = one if threshold(one) else 1 / (1 + np.exp(-one))
        return np.nan_to_num(np.maximum(one, 1 - one))


def _are_shares(scores: NDArray[np.float64]) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def inputs_of(dataset: Any, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    """The first input of each of these samples, of one shape; None where they are no arrays of numbers."""
    found = [_first_array(dataset[int(row)]) for row in rows]
    shapes = {(each.shape, each.dtype) for each in found if each is not None}
    if None in [None if each is None else 0 for each in found] or len(shapes) != 1:
        return None
    return np.stack([each for each in found if each is not None])


def _first_array(sample: Any) -> NDArray[Any] | None:
    while isinstance(sample, (tuple, list)) and len(sample):
        sample = sample[0]
    if not hasattr(sample, "shape") or not hasattr(sample, "dtype"):
        return None
    array = np.asarray(sample)
    return array if array.dtype.kind in "biuf" and array.nbytes <= _MOST_BYTES else None


def class_names(dataset: Any) -> list[str] | None:
    """What the data set, or the one that it is a part of, calls its classes, in the order of the model's outputs:
    `classes`. None where it names none."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, (list, tuple)):
            return [str(name) for name in names]
        dataset = getattr(dataset, "dataset", None)
    return None
