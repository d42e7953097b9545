"""Arrays, digits, lines and the augmentation of whole batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables of its own when first imported
import torch
from numpy.typing import NDArray

from dist_trainer.data import Arrays, Digits, InMemory, Line, Normalize, RandomCrop, RandomFlip
from dist_trainer.data.draws import integers, sample_keys, uniform
from dist_trainer.errors import DataError


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)


def keys(count: int, epoch: int = 0) -> NDArray[np.uint64]:
    return sample_keys(0, epoch, np.arange(count))


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_bytes_stay_bytes_until_the_batch(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    data = Arrays(save(tmp_path / "a.npz", x=images, y=np.arange(40)))
    assert data.inputs.dtype == torch.uint8
    inputs, targets = data.batch(np.array([3, 1]), keys(2))
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs, torch.from_numpy(images[[3, 1]]).float() / 255)
    assert targets.tolist() == [3, 1]


@pytest.mark.parametrize("names", [("train_x", "train_y"), ("x_train", "y_train")])
def test_a_split_is_found_under_both_usual_names(
    tmp_path: Path, images: NDArray[np.uint8], names: tuple[str, str]
) -> None:
    path = save(tmp_path / "a.npz", **{names[0]: images, names[1]: np.zeros(40, int)})
    assert len(Arrays(path, split="train", limit=7)) == 7


def test_channels_at_the_end_come_to_the_front(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    path = save(tmp_path / "a.npz", x=images.transpose(0, 2, 3, 1), y=np.zeros(40, int))
    assert torch.equal(Arrays(path, channels_last=True).inputs, torch.from_numpy(images))


def test_text_labels_become_class_numbers(tmp_path: Path) -> None:
    data = Arrays(save(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.array(["dog", "cat", "dog"])))
    assert data.classes == ["cat", "dog"]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0, 1]


def test_automatic_normalisation_uses_the_training_rows(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    labels = np.zeros(40, int)
    path = save(tmp_path / "a.npz", train_x=images, train_y=labels, test_x=images // 2, test_y=labels)
    train, test = (Arrays(path, split=split, normalize="auto") for split in ("train", "test"))
    inputs, _ = train.batch(np.arange(40), keys(40))
    assert inputs.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert inputs.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)
    assert test.batch(np.arange(40), keys(40))[0].mean() < -0.5


def test_rows_that_are_not_finite_are_known_before_training(tmp_path: Path) -> None:
    x, y = np.zeros((5, 2)), np.zeros(5)
    x[1, 1], y[3] = np.nan, np.inf
    data = Arrays(save(tmp_path / "a.npz", x=x, y=y))
    assert set(data.invalid_rows) == {1, 3}
    assert "input" in data.invalid_rows[1]
    assert "target" in data.invalid_rows[3]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": np.zeros(3)}, {}, r"needs the array y, holds x \(3,\)"),
        (
            {"train_x": np.zeros(3), "train_y": np.zeros(3)},
            {"split": "val"},
            "needs the array val_x or x_val, holds.*set split to one of train",
        ),
        ({"x": np.zeros(3), "y": np.zeros(4)}, {}, "3 inputs and 4 targets"),
        ({"x": np.array(["a"]), "y": np.zeros(1)}, {}, "arrays must hold numbers, got <U1"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1)}, {}, "array x cannot be read"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3)}, {"augment": [RandomFlip()]}, r"needs images.*\(3, 2\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Arrays(save(tmp_path / "a.npz", **arrays), **options)


def test_a_missing_or_foreign_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.npz: no such file; `dist-trainer data pack`"):
        Arrays(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text.npz: not an .npz file"):
        Arrays(tmp_path / "text.npz")


def test_a_crop_is_a_shifted_image_with_zeros_around(images: NDArray[np.uint8]) -> None:
    batch, own = torch.from_numpy(images), keys(40)
    cropped = RandomCrop(padding=2)(batch, own, 0)
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2))
    place = integers(own, 0, 25)
    for row, (down, right) in enumerate(zip(place // 5, place % 5, strict=True)):
        assert torch.equal(cropped[row], padded[row, :, down : down + 8, right : right + 8])
    assert len(np.unique(place)) > 15


def test_a_flip_mirrors_about_half_of_the_images(images: NDArray[np.uint8]) -> None:
    batch = torch.from_numpy(images)
    flipped = RandomFlip()(batch, keys(40), 0)
    mirrored = [torch.equal(flipped[row], batch[row].flip(-1)) for row in range(40)]
    assert 10 < sum(mirrored) < 30
    assert all(done or torch.equal(flipped[row], batch[row]) for row, done in enumerate(mirrored))


def test_a_samples_augmentation_does_not_depend_on_its_neighbours(images: NDArray[np.uint8]) -> None:
    data = InMemory(images, np.arange(40), augment=[RandomCrop(2), RandomFlip(), RandomFlip()])
    whole, _ = data.batch(np.arange(40), keys(40))
    part, _ = data.batch(np.array([31, 7]), keys(40)[[31, 7]])
    assert torch.equal(part, whole[[31, 7]])
    assert not torch.equal(whole, data.batch(np.arange(40), keys(40, epoch=1))[0])
    none, _ = data.batch(np.arange(0), keys(0))
    assert none.shape == (0, 3, 8, 8)


def test_a_single_sample_is_augmented_from_torchs_generator(images: NDArray[np.uint8]) -> None:
    data = InMemory(images, np.arange(40), augment=[RandomCrop(3)])
    torch.manual_seed(1)
    one = data[5][0]
    torch.manual_seed(1)
    assert torch.equal(one, data[5][0])
    assert torch.equal(data.without_augmentation()[5][0], torch.from_numpy(images[5]).float() / 255)


def test_streams_of_one_key_are_independent() -> None:
    many = keys(100_000)
    one, two = uniform(many, 0), uniform(many, 1)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    for numbers in (one, two):
        counts = np.bincount((numbers * 50).astype(int), minlength=50)
        assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * np.sqrt(98)


def test_normalisation_is_by_channel_or_by_one_number() -> None:
    batch = torch.ones(2, 3, 4, 4)
    assert Normalize([0, 1, 2], [1, 2, 4])(batch)[0, :, 0, 0].tolist() == [1.0, 0.0, -0.25]
    assert Normalize(0.5, 0.5)(torch.zeros(2, 7))[0, 0] == -1
    with pytest.raises(ValueError, match=r"normalize.std must be above 0, got 0"):
        Normalize(0, 0)


def test_digits_are_split_without_overlap() -> None:
    train, test, every = Digits(split="train"), Digits(split="test"), Digits()
    assert (len(train), len(test), len(every)) == (1437, 360, 1797)
    assert torch.equal(torch.cat([test.inputs, train.inputs]), every.inputs)
    assert train.targets is not None
    assert set(train.targets) == set(range(10))


def test_a_line_is_a_line() -> None:
    inputs, targets = Line().batch(np.arange(15), keys(15))
    assert inputs.shape == targets.shape == (15, 1)
    assert torch.allclose(targets, 2 * inputs + 1)
    assert Line().targets is None
