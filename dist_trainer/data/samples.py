"""Small data that needs no download: handwritten digits, points on a line."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_trainer.data.memory import InMemory
from dist_trainer.data.permutation import permute
from dist_trainer.errors import DataError

_DIGITS_TEST_ROWS = 360
_DIGITS_SCALE = 16


class Digits(InMemory):
    """Scikit-learn's 1,797 handwritten digits: 64 pixels from 0 to 1, and a class from 0 to 9.

    The test part is 360 of them, always the same.
    """

    def __init__(self, *, split: Literal["train", "test"] | None = None) -> None:
        pixels, classes = _read_digits()
        # the file is sorted by writer: a cut through it would test on other hands than it trained on
        order = permute(np.arange(len(pixels)), len(pixels), 0)
        if split:
            order = order[:_DIGITS_TEST_ROWS] if split == "test" else order[_DIGITS_TEST_ROWS:]
        super().__init__(pixels[order] / _DIGITS_SCALE, classes[order])

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scikit-learn's pixels go from 0 to 16."""
        return [{"divide_by": float(_DIGITS_SCALE)}]


def _read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Its file is read without importing scikit-learn, which would take each worker more than a second."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("Digits come with scikit-learn: pip install scikit-learn")
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


class Line(InMemory):
    """Points on the line y = slope * x + intercept, x from 0 to `stop`; both of shape (1,)."""

    def __init__(
        self, *, points: int = 15, slope: float = 2.0, intercept: float = 1.0, stop: float = 2.0
    ) -> None:
        x = np.linspace(0, stop, points).reshape(-1, 1)
        super().__init__(x, slope * x + intercept)
