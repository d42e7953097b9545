"""Tables in CSV files: features and a label column, read into memory."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_trainer.data.draws import mix
from dist_trainer.data.memory import InMemory
from dist_trainer.data.permutation import Permutation
from dist_trainer.errors import DataError


@dataclass(frozen=True)
class Table:
    """A CSV file as text: its header, its rows, the line each starts on, and what is wrong with some rows."""

    path: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    invalid: dict[int, str]

    def column(self, name: str, *, key: str) -> list[str]:
        """The cells of one column; DataError lists the columns there are. `key` is the argument's name."""
        if name not in self.header:
            raise DataError(f"{self.path}: {key} is {name!r}; the columns are {', '.join(self.header)}")
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def numbers(self, name: str, *, key: str) -> NDArray[np.float64]:
        """One column as numbers. A cell that is none makes its row invalid; DataError where most are none."""
        cells = self.column(name, key=key)
        try:
            return np.array(cells, dtype=np.float64)
        except ValueError:
            values = [_number(cell) for cell in cells]
        wrong = [row for row, value in enumerate(values) if value is None]
        if 2 * len(wrong) > len(cells):
            raise DataError(
                f"{self.path}:{self.lines[wrong[0]]}: column {name!r} holds text, {cells[wrong[0]]!r}; name "
                "it in categorical, or leave it out of features"
            )
        for row in wrong:
            found = repr(cells[row]) if cells[row].strip() else "an empty cell"
            self.invalid.setdefault(
                row, f"line {self.lines[row]}, column {name!r}: needs a number, got {found}"
            )
        return np.array([0.0 if value is None else value for value in values])


class CSV(InMemory):
    """A CSV file with a header: `label` is the column to predict, `features` all others or those named.

    Features are standardised by the training rows' mean and deviation; `categorical` ones become one column
    per value. With `task: regression` the label is a number, of shape (1,), else a class (`classes` in sorted
    order). `split` takes the train or the test part, `test_fraction` of the rows drawn by `seed`; without it
    all rows are there. A cell that cannot be used makes its row a bad one (`data.bad_rows`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        label: str,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        task: Literal["classification", "regression"] = "classification",
        split: Literal["train", "test"] | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        standardize: bool = True,
        delimiter: str = ",",
    ) -> None:
        table = read_table(path, delimiter=delimiter)
        self.classes: list[str] | None = None
        if task == "regression":
            targets: NDArray[Any] = table.numbers(label, key="label").reshape(-1, 1)
        else:
            targets, self.classes = _classes(table, label)
        names = [name for name in features or table.header if features or name != label]
        inputs = np.stack(_feature_columns(table, names, categorical), axis=1)
        train, test = _halves(len(table.rows), test_fraction if split else 0.0, seed)
        self._columns = _column_names(table, names, categorical)
        self._mean, self._deviation = np.zeros(inputs.shape[1]), np.ones(inputs.shape[1])
        if standardize:
            self._mean, self._deviation = _scale(inputs, np.setdiff1d(train, list(table.invalid)))
            inputs = (inputs - self._mean) / self._deviation
        rows = test if split == "test" else train
        invalid = {number: table.invalid[row] for number, row in enumerate(rows) if row in table.invalid}
        super().__init__(inputs[rows], targets[rows], invalid_rows=invalid)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """The columns that the features come from, and their scale."""
        scale = {"subtract": self._mean.tolist(), "divide_by": self._deviation.tolist(), "dimension": 1}
        return [{"columns": self._columns}, scale]


def read_table(path: str | Path, *, delimiter: str = ",") -> Table:
    """Read a CSV file whose first line names the columns; DataError for a missing or an empty one."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            table = Table(str(path), header, [], [], {})
            for cells in reader:
                if cells:
                    _add_row(table, cells, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    if not table.rows:
        raise DataError(f"{path}: no rows below the header {', '.join(header)!r}")
    return table


def _add_row(table: Table, cells: list[str], line: int) -> None:
    if len(cells) != len(table.header):
        reason = f"line {line}: {len(cells)} cells where the header has {len(table.header)}"
        table.invalid[len(table.rows)] = reason
        cells = (cells + [""] * len(table.header))[: len(table.header)]
    table.rows.append(cells)
    table.lines.append(line)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _classes(table: Table, label: str) -> tuple[NDArray[np.int64], list[str]]:
    cells = [cell.strip() for cell in table.column(label, key="label")]
    for row, cell in enumerate(cells):
        if not cell:
            reason = f"line {table.lines[row]}, column {label!r}: needs a label, got an empty cell"
            table.invalid.setdefault(row, reason)
    names = sorted(set(cells) - {""}, key=lambda name: (_number(name) is None, _number(name) or 0.0, name))
    numbers = {name: number for number, name in enumerate(names)} | {"": 0}
    return np.array([numbers[cell] for cell in cells], dtype=np.int64), names


def _feature_columns(
    table: Table, names: Sequence[str], categorical: Sequence[str]
) -> list[NDArray[np.float64]]:
    for name in categorical:
        table.column(name, key="categorical")
    columns: list[NDArray[np.float64]] = []
    for name in names:
        if name not in categorical:
            columns.append(table.numbers(name, key="features"))
            continue
        cells = np.array(table.column(name, key="categorical"))
        columns.extend((cells == value).astype(np.float64) for value in np.unique(cells))
    if not columns:
        raise DataError(f"{table.path}: no features are left; the columns are {', '.join(table.header)}")
    return columns


def _column_names(table: Table, names: Sequence[str], categorical: Sequence[str]) -> list[str]:
    """The names of the feature columns; of a categorical one `name=value` for each of its values."""
    found: list[str] = []
    for name in names:
        values = np.unique(np.array(table.column(name, key="features"))) if name in categorical else None
        found += [name] if values is None else [f"{name}={value}" for value in values]
    return found


def _halves(length: int, test_fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not 0 <= test_fraction < 1:
        raise DataError(f"test_fraction must be at least 0 and below 1, got {test_fraction}")
    if not test_fraction:
        return np.arange(length), np.arange(0)
    order = Permutation(length, mix(seed))(np.arange(length))
    held_out = min(length - 1, max(1, round(length * test_fraction)))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _scale(
    inputs: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each column over these rows, as far as they can be used; 0 and 1 where none can."""
    usable = inputs[rows]
    usable = usable[np.isfinite(usable).all(axis=1)]
    if not len(usable):
        return np.zeros(inputs.shape[1]), np.ones(inputs.shape[1])
    deviation = usable.std(axis=0)
    return usable.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
