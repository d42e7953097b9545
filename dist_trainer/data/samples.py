"""Small data that needs no download: handwritten digits, points on a line."""

from typing import Literal

import numpy as np

from dist_trainer.data.memory import InMemory
from dist_trainer.data.permutation import permute
from dist_trainer.errors import DataError

_DIGITS_TEST_ROWS = 360


class Digits(InMemory):
    """Scikit-learn's 1,797 handwritten digits: 64 pixels from 0 to 1, and a class from 0 to 9.

    The test part is 360 of them, always the same.
    """

    def __init__(self, *, split: Literal["train", "test"] | None = None) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("Digits come with scikit-learn: pip install scikit-learn") from error
        pixels, classes = load_digits(return_X_y=True)
        # the file is sorted by writer: a cut through it would test on other hands than it trained on
        order = permute(np.arange(len(pixels)), len(pixels), 0)
        if split:
            order = order[:_DIGITS_TEST_ROWS] if split == "test" else order[_DIGITS_TEST_ROWS:]
        super().__init__(pixels[order] / 16, classes[order])


class Line(InMemory):
    """Points on the line y = slope * x + intercept, x from 0 to `stop`; both of shape (1,)."""

    def __init__(
        self, *, points: int = 15, slope: float = 2.0, intercept: float = 1.0, stop: float = 2.0
    ) -> None:
        x = np.linspace(0, stop, points).reshape(-1, 1)
        super().__init__(x, slope * x + intercept)
