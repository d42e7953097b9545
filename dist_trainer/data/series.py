"""Series of numbers, cut into windows: the past as input, what comes next as target."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_trainer.data.arrays import read_arrays
from dist_trainer.data.memory import InMemory
from dist_trainer.data.tables import read_table
from dist_trainer.errors import DataError


class Windows(InMemory):
    """Each sample: `length` points in a row, of shape (length, 1), and the `horizon` points that follow them.

    `series` is an array, or a file: a .csv (`column` names the column), .npy, or .npz (`column` names the
    array). The last `test_points` points are the test part: with `split: test` the targets are those points
    and inputs may reach back before them; with `split: train` nothing of them is seen. `standardize` scales
    by the training part's `mean` and `deviation`; forecast * deviation + mean is in the series' own unit.
    """

    def __init__(
        self,
        series: str | Path | NDArray[Any] | list[float],
        *,
        length: int,
        horizon: int = 1,
        column: str | None = None,
        split: Literal["train", "test"] | None = None,
        test_points: int = 0,
        standardize: bool = False,
    ) -> None:
        points = _read(series, column)
        train = len(points) - (test_points if split else 0)
        if train < length + horizon or (split == "test" and test_points < horizon):
            raise DataError(
                f"a series of {len(points)} points, {len(points) - train} of them for testing, is too short "
                f"for windows of {length} points and a horizon of {horizon}"
            )
        known = points[:train][np.isfinite(points[:train])]
        self.mean = float(known.mean()) if standardize and len(known) else 0.0
        self.deviation = (float(known.std()) or 1.0) if standardize and len(known) else 1.0
        first, last = (train, len(points)) if split == "test" else (length, train)
        # starts[i] is where the target of window i begins
        self.starts = np.arange(first, last - horizon + 1)
        scaled = (points - self.mean) / self.deviation
        inputs = scaled[self.starts[:, None] + np.arange(-length, 0)]
        super().__init__(inputs[:, :, None], scaled[self.starts[:, None] + np.arange(horizon)])

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """The scale of the series, which the model's outputs have as well."""
        return [{"subtract": self.mean, "divide_by": self.deviation, "outputs": "likewise"}]


def sine(points: int = 200, *, step: float = 0.1) -> NDArray[np.float64]:
    """sin(0), sin(step), sin(2 * step), ..."""
    wave: NDArray[np.float64] = np.sin(np.arange(points) * step)
    return wave


def plot_forecast(actual: NDArray[Any], forecast: NDArray[Any], path: str | Path) -> None:
    """Draw a forecast over what really came, as a picture (.png, .pdf, .svg)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(np.ravel(actual), label="actual")
    axes.plot(np.ravel(forecast), linestyle="--", label="forecast")
    axes.legend()
    figure.savefig(path)


def _read(series: str | Path | NDArray[Any] | list[float], column: str | None) -> NDArray[np.float64]:
    if not isinstance(series, str | Path):
        points = np.asarray(series, dtype=np.float64)
    elif (suffix := Path(series).suffix) == ".csv":
        points = _read_column(series, column)
    elif suffix == ".npy":
        points = np.load(series, allow_pickle=False).astype(np.float64)
    elif suffix == ".npz":
        arrays = read_arrays(series)
        if column not in arrays:
            raise DataError(f"{series}: column is {column!r}; the arrays are {', '.join(arrays)}")
        points = arrays[str(column)].astype(np.float64)
    else:
        raise DataError(f"{series}: a series is an array, or a .csv, .npy or .npz file")
    if points.ndim != 1:
        raise DataError(f"a series has one dimension, got shape {points.shape}")
    return points


def _read_column(path: str | Path, column: str | None) -> NDArray[np.float64]:
    table = read_table(path)
    points = table.numbers(column or table.header[-1], key="column")
    points[list(table.invalid)] = np.nan  # the windows that touch it become bad rows
    return points
