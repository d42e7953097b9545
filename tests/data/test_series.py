"""Series cut into windows."""

from pathlib import Path

import numpy as np
import pytest

from dist_trainer.data import Windows, plot_forecast, sine
from dist_trainer.errors import DataError


def test_a_window_is_followed_by_its_target() -> None:
    data = Windows(np.arange(10.0), length=3, horizon=2)
    assert len(data) == 6
    assert data.inputs.shape == (6, 3, 1)
    assert data.inputs[1, :, 0].tolist() == [1, 2, 3]
    assert data[1][1].tolist() == [4, 5]


def test_the_test_part_forecasts_each_of_the_last_points_and_training_sees_none() -> None:
    train, test = (
        Windows(np.arange(100.0), length=10, split=split, test_points=25) for split in ("train", "test")
    )
    assert [float(y) for _, y in (test[i] for i in range(len(test)))] == list(range(75, 100))
    assert test[0][0][:, 0].tolist() == list(range(65, 75))
    assert max(float(y) for _, y in (train[i] for i in range(len(train)))) == 74


def test_both_parts_are_scaled_by_the_training_part() -> None:
    train, test = (
        Windows(np.arange(100.0), length=5, split=split, test_points=50, standardize=True)
        for split in ("train", "test")
    )
    assert (train.mean, test.mean) == (24.5, 24.5)
    assert float(test[0][1]) * test.deviation + test.mean == pytest.approx(50, abs=1e-4)


def test_a_hole_makes_the_windows_that_touch_it_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("day,value\n" + "".join(f"{day},{'' if day == 10 else day}\n" for day in range(20)))
    data = Windows(path, column="value", length=3, standardize=True)
    assert set(data.invalid_rows) == {7, 8, 9, 10}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_a_series_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"series{suffix}"
    if suffix == ".npy":
        np.save(path, np.arange(9.0))
    elif suffix == ".npz":
        np.savez(path, wave=np.arange(9.0))
    else:
        path.write_text("wave\n" + "\n".join(map(str, range(9))))
    assert len(Windows(str(path), column="wave", length=4)) == 5


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        (np.arange(5.0), {"length": 5}, "a series of 5 points, 0 of them for testing, is too short"),
        (np.arange(50.0), {"length": 5, "split": "test"}, "too short"),
        (np.zeros((5, 2)), {"length": 2}, r"one dimension, got shape \(5, 2\)"),
        ("series.txt", {"length": 2}, "a series is an array, or a .csv, .npy or .npz file"),
    ],
)
def test_what_is_wrong_with_a_series_is_said(series: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Windows(series, **options)  # type: ignore[arg-type]


def test_a_forecast_is_drawn(tmp_path: Path) -> None:
    plot_forecast(sine(50), sine(50), tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").read_bytes()[1:4] == b"PNG"
