"""CSV files as data sets."""

from pathlib import Path

import numpy as np
import pytest

from dist_trainer.data import CSV
from dist_trainer.errors import DataError
from dist_trainer.training.fetch import Fetcher
from dist_trainer.training.sampler import Rows, sample_keys


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def column(data: CSV, place: int) -> list[float]:
    return data.inputs[:, place].tolist()


PEOPLE = "age,city,height,fit\n20,Rome,1.5,yes\n30,Bern,1.7,no\n40,Rome,1.9,yes\n"


def test_features_are_standardised_and_labels_numbered(tmp_path: Path) -> None:
    data = CSV(write(tmp_path, PEOPLE), label="fit", features=["age", "height"])
    assert data.classes == ["no", "yes"]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0, 1]
    assert column(data, 0) == pytest.approx([-1.2247, 0, 1.2247], abs=1e-3)


def test_categorical_features_become_one_column_per_value(tmp_path: Path) -> None:
    data = CSV(write(tmp_path, PEOPLE), label="fit", categorical=["city"], standardize=False)
    assert data.inputs.shape == (3, 4)
    assert (column(data, 1), column(data, 2)) == ([0, 1, 0], [1, 0, 1])


def test_a_regression_label_is_a_number_of_shape_one(tmp_path: Path) -> None:
    data = CSV(write(tmp_path, PEOPLE), label="height", features=["age"], task="regression")
    assert data.batch(np.arange(3), sample_keys(0, 0, np.arange(3)))[1].shape == (3, 1)
    assert data.targets is None


def test_numeric_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    data = CSV(write(tmp_path, "x,y\n1,10\n2,9\n3,10\n"), label="y")
    assert data.classes == ["9", "10"]


def test_the_parts_are_disjoint_and_scaled_by_the_training_part(tmp_path: Path) -> None:
    rows = "".join(f"{number},{number % 3}\n" for number in range(100))
    path = write(tmp_path, "x,y\n" + rows)
    train, test = (CSV(path, label="y", split=split, test_fraction=0.3) for split in ("train", "test"))
    plain = [
        CSV(path, label="y", split=split, test_fraction=0.3, standardize=False) for split in ("train", "test")
    ]
    numbers = [set(map(int, column(part, 0))) for part in plain]
    assert (len(train), len(test)) == (70, 30)
    assert numbers[0] | numbers[1] == set(range(100))
    assert column(train, 0) == pytest.approx(
        (np.array(column(plain[0], 0)) - np.mean(list(numbers[0]))) / np.std(list(numbers[0])), abs=1e-4
    )
    known = np.array(list(numbers[0]))
    assert column(test, 0) == pytest.approx(
        (np.array(column(plain[1], 0)) - known.mean()) / known.std(), abs=1e-4
    )


def test_bad_cells_are_bad_rows_with_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y\n1,a\n2,\nabc,b\n,a\n5\n6,a\n7,b\n8,a\nnan,b\n")
    data = CSV(path, label="y")
    assert data.invalid_rows == {
        1: "line 3, column 'y': needs a label, got an empty cell",
        2: "line 4, column 'x': needs a number, got 'abc'",
        3: "line 5, column 'x': needs a number, got an empty cell",
        4: "line 6: 1 cells where the header has 2",
        8: "its input holds a number that is not finite",
    }
    rows = Rows(0, np.arange(9), np.arange(9))
    assert Fetcher(data, bad_rows="skip").fetch(rows).bad == [1, 2, 3, 4, 8]
    with pytest.raises(DataError, match=r"data.train row 1: line 3, column 'y': needs a label"):
        Fetcher(data).fetch(rows)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (PEOPLE, {"label": "target"}, "label is 'target'; the columns are age, city, height, fit"),
        (PEOPLE, {"label": "fit", "features": ["size"]}, "features is 'size'; the columns are age"),
        (PEOPLE, {"label": "fit"}, r"table.csv:2: column 'city' holds text, 'Rome'; name it in categorical"),
        ("x,y\n", {"label": "y"}, "no rows below the header 'x, y'"),
        ("", {"label": "y"}, "no rows"),
        ("y\n1\n", {"label": "y"}, "no features are left"),
        (
            PEOPLE,
            {"label": "fit", "features": ["age"], "split": "test", "test_fraction": 1.5},
            "below 1, got 1.5",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CSV(write(tmp_path, text), **options)  # type: ignore[arg-type]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv: cannot be read as CSV: .*No such file"):
        CSV(tmp_path / "none.csv", label="y")
