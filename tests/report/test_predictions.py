"""What a file of predictions is shown as is decided by its arrays; anything else is said, and breaks nothing."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_trainer.errors import DataError
from dist_trainer.report.pictures import are_pictures, as_data_uris
from dist_trainer.report.predictions import read
from dist_trainer.shown_samples import as_classes, class_names, inputs_of, rows_to_show
from tests.report.runs import make_run, predicted

SCORES = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
TRUTH = np.array([0, 1, 2, 2, 0])
CLASSES = {"prediction": SCORES, "class": SCORES.argmax(1), "truth": TRUTH}


def test_classes_become_a_matrix_with_recall_precision_and_the_worst_samples_first(tmp_path: Path) -> None:
    shown = rows_to_show({"row": np.arange(5), **CLASSES}, 4)
    assert shown.tolist() == [2, 4, 0, 1], "the surest mistake first, right ones last"
    pictures = np.random.default_rng(0).random((4, 1, 8, 8))
    arrays = {**CLASSES, "sample_row": shown, "sample_input": pictures}
    found = read(predicted(make_run(tmp_path), arrays, classes=["ant", "bee", "<b>"]))
    confusion = found.confusion
    assert found.kind == "classes" and confusion is not None
    matrix = confusion.matrix
    assert matrix is not None
    assert [[cell.count for cell in row] for row in matrix.rows] == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert matrix.recall == [0.5, 1.0, 0.5] and matrix.precision == [1.0, pytest.approx(1 / 3), 1.0]
    assert (confusion.right, confusion.total) == (3, 5)
    first = found.samples[0]
    assert (first.row, first.truth, first.said, first.is_right) == (2, "<b>", "bee", False)
    assert first.sure == pytest.approx(1, abs=1e-3)
    assert first.picture is not None and first.picture.startswith("data:image/png;base64,")


@pytest.mark.parametrize("scores", [np.array([[0.9], [0.2], [0.6]]), np.array([3.0, -2.0, 0.4])])
def test_two_classes_may_be_told_by_one_probability_or_logit(scores: Any) -> None:
    said = as_classes({"truth": np.array([1.0, 0.0, 0.0]), "prediction": scores})
    assert said is not None and said[0].tolist() == [1, 0, 1] and said[1].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("scores", "said"), [([0.2, 0.9], [0, 1]), ([-3.0, 0.2], [0, 1])])
def test_a_score_that_is_no_number_is_no_class_and_leaves_the_others_theirs(
    scores: list[float], said: list[int]
) -> None:
    arrays = {"truth": np.array([0, 1, 0]), "prediction": np.array([*scores, np.nan])}
    found = as_classes(arrays)
    assert found is not None and found[0].tolist() == [*said, -1]


def test_rows_without_a_class_are_left_out(tmp_path: Path) -> None:
    arrays = {**CLASSES, "truth": np.array([0, -100, 2, 2, 0])}
    confusion = read(predicted(make_run(tmp_path), arrays)).confusion
    assert confusion is not None and confusion.total == 4
    assert confusion.matrix is not None and confusion.matrix.names == ["0", "1", "2"]


@pytest.mark.parametrize("first", [0, 995, 10_000, 1 << 40])
def test_any_number_of_classes_is_counted_right(first: int, tmp_path: Path) -> None:
    truth = np.arange(first, first + 30)
    said = truth.copy()
    said[:3] = -1, first + 7, first + 7
    found = read(predicted(make_run(tmp_path), {"class": said, "truth": truth}))
    confusion = found.confusion
    assert confusion is not None and confusion.matrix is None
    assert (confusion.right, confusion.total, confusion.classes) == (27, 30, first + 30)
    assert confusion.worst == [(str(first + number), str(first + 7), 1) for number in (1, 2)]
    assert found.as_json()["confusion"] is None


def test_windows_of_a_series_are_a_forecast_and_other_numbers_are_not(tmp_path: Path) -> None:
    run, wave = make_run(tmp_path), np.sin(np.arange(40) / 3)
    windows = np.stack([wave[start : start + 10] for start in range(5)])[:, :, None]
    arrays = {"prediction": wave[:30, None], "truth": wave[:30, None], "sample_row": np.arange(5)}
    assert read(predicted(run, {**arrays, "sample_input": windows})).kind == "series"
    found = read(predicted(run, {**arrays, "sample_input": windows[:, ::-1].copy()}))
    assert found.kind == "numbers" and len(found.samples) == 5 and found.samples[0].picture is None


def test_what_has_no_picture_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    one = read(predicted(run, {"prediction": np.zeros((3, 4, 8, 8)), "truth": np.zeros((3, 8, 8))}))
    assert one.note == "There is no picture for (3, 8, 8) targets, (3, 4, 8, 8) predictions."
    assert "no single array" in read(predicted(run, {"prediction": np.zeros((3, 2))})).note
    assert read(predicted(run, {"prediction": np.zeros((0, 2))})).note == "There is no row in it."


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = predicted(make_run(tmp_path), CLASSES)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"predictions-test\.npz cannot be read"):
        read(path)


def test_a_file_that_would_grow_in_memory_is_refused(tmp_path: Path) -> None:
    path = predicted(make_run(tmp_path), CLASSES)
    np.savez_compressed(path, row=np.zeros(10_000_000, dtype=np.int8))
    with pytest.raises(DataError, match="it is compressed"):
        read(path)


def test_objects_in_a_file_are_not_unpickled(tmp_path: Path) -> None:
    path = predicted(make_run(tmp_path), CLASSES)
    np.savez(path, row=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("shape", "is_picture"),
    [
        ((2, 1, 8, 8), True),
        ((2, 3, 224, 200), True),
        ((2, 28, 28), True),
        ((2, 32, 32, 3), True),
        ((2, 64), False),
        ((2, 10, 1), False),
        ((2, 4, 8, 8), False),
        ((2, 3, 8, 2), False),
    ],
)
def test_pictures_are_known_by_their_shape(shape: tuple[int, ...], is_picture: bool) -> None:
    assert are_pictures(np.zeros(shape)) == is_picture


def test_a_picture_keeps_its_bytes_and_a_large_one_is_made_smaller() -> None:
    given = np.random.default_rng(0).integers(0, 255, (1, 3, 9, 7), dtype=np.uint8)
    assert np.array_equal(_pixels(as_data_uris(given)[0]), np.moveaxis(given[0], 0, -1))
    assert _pixels(as_data_uris(np.zeros((1, 3, 224, 300)))[0]).shape == (74, 100, 3)
    normalised = np.stack([np.full((1, 4, 4), -1.0), np.full((1, 4, 4), 1.0)])
    assert [int(_pixels(uri).max()) for uri in as_data_uris(normalised)] == [0, 255]


def _pixels(uri: str) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_inputs_and_class_names_are_taken_from_any_data_set() -> None:
    class Part:
        dataset = type("Whole", (), {"classes": ["ant", "bee"]})()

    assert class_names(Part()) == ["ant", "bee"] and class_names([]) is None
    assert class_names(type("Odd", (), {"classes": 3})()) is None
    many = class_names(type("Many", (), {"classes": tuple(range(21_000))})())
    assert many is not None and len(many) == 21_000 and many[-1] == "20999"
    pairs = [(np.full((2, 2), row), row) for row in range(5)]
    found = inputs_of(pairs, np.array([3, 1]))
    assert found is not None and found[:, 0, 0].tolist() == [3, 1]
    assert inputs_of([("text", 1)], np.array([0])) is None
    assert inputs_of([(np.zeros(2), 0), (np.zeros(3), 0)], np.array([0, 1])) is None
