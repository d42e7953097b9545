"""A file of predictions as a page shows it: confusion of classes, forecast against truth, single samples.

Which of these it is, is decided by what the arrays are: targets that are classes, numbers that follow a window of
a series, or other numbers.
"""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dist_trainer.adapters.files import open_plain, refuse_link
from dist_trainer.diagnose.words import one_line
from dist_trainer.errors import DataError
from dist_trainer.report.pictures import are_pictures, as_data_uris
from dist_trainer.shown_samples import ABOUT, SAMPLE_INPUT, SAMPLE_ROW, TRUTH, as_classes, sureness

Kind = Literal["classes", "series", "numbers", "other"]
_FILE = re.compile(r"predictions-(train|val|test)[.]npz")
_MOST_CLASSES = 24  # a larger matrix is no table that one reads: then the worst pairs are
_MOST_PAIRS = 10
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Cell:
    """One number of the matrix; `shade` is 0 to 9, its share of the true class."""

    count: int
    shade: int
    is_right: bool


@dataclass(frozen=True)
class Matrix:
    """Rows are the true classes, columns what was said; `recall` and `precision` are by class."""

    names: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    recall: Sequence[float | None]
    precision: Sequence[float | None]


@dataclass(frozen=True)
class Confusion:
    """How many of the rows that have a true class are right, and what was taken for what."""

    right: int
    total: int
    classes: int
    worst: Sequence[tuple[str, str, int]]  # true class, said class, how often
    matrix: Matrix | None  # None where there are more classes than a table shows


@dataclass(frozen=True)
class Sample:
    """One sample with its picture, or without one."""

    row: int
    truth: str
    said: str
    sure: float | None
    is_right: bool | None
    picture: str | None  # a data URI


@dataclass(frozen=True)
class Predictions:
    """All of one file; `truth` and `said` are numbers by row, for a plot."""

    split: str
    step: int | None
    rows: int
    kind: Kind
    confusion: Confusion | None = None
    samples: Sequence[Sample] = ()
    truth: NDArray[Any] | None = None
    said: NDArray[Any] | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """What programs may want of it."""
        about: dict[str, Any] = {"split": self.split, "step": self.step, "rows": self.rows, "kind": self.kind}
        if self.confusion is not None:
            about |= {"right": self.confusion.right, "total": self.confusion.total}
            matrix = self.confusion.matrix
            about |= {"classes": list(matrix.names) if matrix else None}
            about |= {"confusion": [[cell.count for cell in row] for row in matrix.rows] if matrix else None}
        return about


def files(folder: Path) -> list[Path]:
    """The files of predictions in a run's report folder. DataError where that is a link."""
    refuse_link(folder)
    return sorted(path for path in folder.glob("predictions-*.npz") if _FILE.fullmatch(path.name))


def read(path: Path) -> Predictions:
    """One file. DataError where it is not what `report --predict` writes."""
    try:
        with open_plain(path) as file:  # ours to close: numpy leaves it open where it is no zip
            _refuse_compressed(file)
            arrays = dict(np.load(file, allow_pickle=False))
        about = json.loads(str(arrays[ABOUT])) if ABOUT in arrays else {}
        return _understood(arrays, about if isinstance(about, dict) else {}, _split_of(path))
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        RuntimeError,  # encrypted, or by a method that is not known
        MemoryError,
    ) as error:
        raise DataError(f"{path.name} cannot be read: {one_line(str(error), 100)}") from error


def _refuse_compressed(file: BinaryIO) -> None:
    """Ours are stored as they are: what a small file could grow to in memory is not waited for."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, as no file of ours is")
    file.seek(0)


def _split_of(path: Path) -> str:
    found = _FILE.fullmatch(path.name)
    return found[1] if found else path.stem


def _understood(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], split: str) -> Predictions:
    step = about.get("step")
    rows, step = len(arrays["row"]), step if isinstance(step, int) else None
    if rows == 0:
        return Predictions(split, step, 0, "other", note="There is no row in it.")
    classes = as_classes(arrays)
    if classes is not None:
        said, truth = classes
        names = _Names(about.get("classes"))
        samples = _class_samples(arrays, said, truth, names)
        return Predictions(split, step, rows, "classes", _confusion(said, truth, names), samples)
    return _of_numbers(arrays, split, step)


def _of_numbers(arrays: Mapping[str, NDArray[Any]], split: str, step: int | None) -> Predictions:
    said, truth, rows = _main(arrays), arrays.get(TRUTH), len(arrays["row"])
    if truth is None:
        return Predictions(
            split, step, rows, "other", note="The targets are no single array: see Task.target."
        )
    if said is None or said.size != truth.size or truth.dtype.kind not in "biuf":
        shapes = f"{tuple(truth.shape)} targets, {None if said is None else tuple(said.shape)} predictions"
        return Predictions(split, step, rows, "other", note=f"There is no picture for {shapes}.")
    inputs = arrays.get(SAMPLE_INPUT)
    windows = inputs is not None and inputs.ndim in (2, 3) and inputs.shape[1] > 1 and _overlap(inputs)
    kind: Kind = "series" if windows else "numbers"
    meant, thought = (np.asarray(each, dtype=np.float64).reshape(rows, -1) for each in (truth, said))
    return Predictions(split, step, rows, kind, None, _samples(arrays, meant, thought), meant, thought)


def _main(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """The prediction proper: the array of that name, else the first that the task names."""
    ours = {"row", TRUTH, ABOUT, SAMPLE_ROW, SAMPLE_INPUT}
    others = [values for name, values in arrays.items() if name not in ours and values.dtype.kind in "biuf"]
    return arrays.get("prediction", others[0] if others else None)


def _overlap(inputs: NDArray[Any]) -> bool:
    """Whether each sample is the one before, moved on by a point: windows of one series."""
    return len(inputs) > 1 and bool(np.allclose(inputs[:-1, 1:], inputs[1:, :-1], atol=1e-5))


class _Names:
    """What classes are called: by the data set, else by their numbers."""

    def __init__(self, given: Any) -> None:
        self.known = [one_line(name, _LONGEST_NAME) for name in given] if isinstance(given, list) else []

    def __call__(self, number: int) -> str:
        if number < 0:
            return "no class"
        return self.known[number] if number < len(self.known) else str(number)


def _confusion(said: NDArray[np.int64], truth: NDArray[np.int64], names: _Names) -> Confusion:
    has_class = truth >= 0
    said, truth = said[has_class], truth[has_class]
    highest = max(int(said.max(initial=-1)), int(truth.max(initial=-1)))
    classes = max(highest + 1, len(names.known))
    return Confusion(
        right=int((said == truth).sum()),
        total=len(truth),
        classes=classes,
        worst=_worst(said, truth, names),
        matrix=_matrix(said, truth, [names(number) for number in range(classes)])
        if classes <= _MOST_CLASSES
        else None,
    )


def _worst(said: NDArray[np.int64], truth: NDArray[np.int64], names: _Names) -> list[tuple[str, str, int]]:
    """The most frequent mistakes; there may be any number of classes."""
    wrong = (said != truth) & (said >= 0)
    pairs, times = np.unique(np.stack([truth[wrong], said[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:_MOST_PAIRS]
    return [(names(int(pairs[at][0])), names(int(pairs[at][1])), int(times[at])) for at in order]


def _matrix(said: NDArray[np.int64], truth: NDArray[np.int64], names: Sequence[str]) -> Matrix:
    counts, known = np.zeros((len(names), len(names)), dtype=np.int64), said >= 0
    np.add.at(counts, (truth[known], said[known]), 1)
    of_class, right = np.bincount(truth, minlength=len(names)), np.diag(counts)
    rows = [
        [
            Cell(int(count), int(9 * count / max(of_class[true], 1)), true == column)
            for column, count in enumerate(row)
        ]
        for true, row in enumerate(counts)
    ]
    return Matrix(names, rows, _shares(right, of_class), _shares(right, counts.sum(axis=0)))


def _shares(parts: NDArray[Any], wholes: NDArray[Any]) -> list[float | None]:
    return [float(part / whole) if whole else None for part, whole in zip(parts, wholes, strict=True)]


def _class_samples(
    arrays: Mapping[str, NDArray[Any]],
    said: NDArray[np.int64],
    truth: NDArray[np.int64],
    names: _Names,
) -> list[Sample]:
    pictures, sure = _pictures(arrays), sureness(arrays)
    has_scores = "prediction" in arrays
    found = []
    for index, place in enumerate(_places(arrays)):
        meant, thought = int(truth[place]), int(said[place])
        found.append(
            Sample(
                int(arrays["row"][place]),
                names(meant),
                names(thought),
                float(sure[place]) if has_scores else None,
                meant == thought,
                pictures[index] if pictures else None,
            )
        )
    return found


def _samples(arrays: Mapping[str, NDArray[Any]], truth: NDArray[Any], said: NDArray[Any]) -> list[Sample]:
    pictures = _pictures(arrays)
    return [
        Sample(
            int(arrays["row"][place]),
            _number(truth[place]),
            _number(said[place]),
            None,
            None,
            pictures[index] if pictures else None,
        )
        for index, place in enumerate(_places(arrays))
    ]


def _number(values: NDArray[Any]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    return f"{shown}, ..." if len(values) > 4 else shown


def _places(arrays: Mapping[str, NDArray[Any]]) -> list[int]:
    """Where the samples are in the arrays: rows may be missing, where bad ones are skipped."""
    places = np.searchsorted(arrays["row"], arrays.get(SAMPLE_ROW, np.empty(0, np.int64)))
    return [int(place) for place in places if place < len(arrays["row"])]


def _pictures(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    inputs = arrays.get(SAMPLE_INPUT)
    if inputs is None or len(inputs) != len(_places(arrays)) or not are_pictures(inputs):
        return []
    return as_data_uris(inputs)
