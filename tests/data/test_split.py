"""Parts of a data set, and data sets packed into one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from dist_trainer.config.targets import build
from dist_trainer.data import Arrays, InMemory, RandomCrop, pack, split_dataset
from dist_trainer.errors import DataError
from dist_trainer.training.fetch import Fetcher
from dist_trainer.training.sampler import Rows, sample_keys


class Squares(Dataset[int]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return index * index


class ListedSquares(Squares):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [index * index for index in indices]


@pytest.fixture
def images() -> InMemory:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8)).astype(np.uint8)
    return InMemory(pixels, np.arange(100), augment=[RandomCrop(4)])


def test_parts_are_disjoint_seeded_and_cover_the_whole() -> None:
    parts = split_dataset(Squares(), {"val": 0.1, "test": 0.25}, seed=3)
    again = split_dataset(Squares(), {"val": 0.1, "test": 0.25}, seed=3)
    other = split_dataset(Squares(), {"val": 0.1, "test": 0.25}, seed=4)
    rows = {name: part.rows.tolist() for name, part in parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 65, "val": 10, "test": 25}
    assert sorted(sum(rows.values(), [])) == list(range(100))  # noqa: RUF017
    assert rows == {name: part.rows.tolist() for name, part in again.items()}
    assert rows["val"] != other["val"].rows.tolist()
    assert parts["val"][4] == rows["val"][4] ** 2


def test_parts_keep_the_fast_ways_to_fetch(images: InMemory) -> None:
    part = split_dataset(images, {"val": 0.2}, seed=0)["train"]
    _, targets = part.batch(np.array([5, 2]), sample_keys(0, 0, np.arange(2)))  # type: ignore[attr-defined]
    assert targets.tolist() == part.rows[[5, 2]].tolist()
    listed = split_dataset(ListedSquares(), {"val": 0.2}, seed=0)["val"]
    assert listed.__getitems__([3, 1]) == [listed[3], listed[1]]  # type: ignore[attr-defined]
    plain = split_dataset(Squares(), {"val": 0.2}, seed=0)["val"]
    assert not hasattr(plain, "batch")
    assert not hasattr(plain, "__getitems__")


def test_held_out_parts_are_not_augmented(images: InMemory) -> None:
    parts = split_dataset(images, {"val": 0.2}, seed=0)
    for name, part in parts.items():
        pixels, rows = part[0][0], int(part.rows[0])
        assert torch.equal(pixels, images.inputs[rows].float() / 255) == (name == "val")


def test_classes_weights_and_invalid_rows_go_with_their_rows(images: InMemory) -> None:
    images.invalid_rows = {7: "torn", 8: "torn", 9: "torn"}
    parts = split_dataset(images, {"val": 0.5}, seed=0)
    for part in parts.values():
        assert part.targets is not None
        assert part.targets.tolist() == part.rows.tolist()
        assert part.sample_weights is None
        assert {int(part.rows[row]) for row in part.invalid_rows} == {7, 8, 9} & set(part.rows.tolist())
    with pytest.raises(DataError, match=r"row \d+: torn \(row 7 before the split\)"):
        holder = next(part for part in parts.values() if 7 in part.rows)
        Fetcher(holder).fetch(Rows(0, np.arange(1), np.flatnonzero(holder.rows == 7)))


def test_a_part_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.split.val: 0.001 of 100 rows is not one row"):
        split_dataset(Squares(), {"val": 0.001}, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (10, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_an_image_folder_is_packed_and_read_back(folder: Path, tmp_path: Path) -> None:
    pictures = ImageFolder(folder)
    shapes = pack(pictures, pictures, tmp_path / "out" / "pictures.npz")
    assert shapes["train_x"] == (6, 3, 10, 12)
    data = Arrays(tmp_path / "out" / "pictures.npz", split="test")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]
    expected = torch.tensor(np.asarray(pictures[4][0])).permute(2, 0, 1)
    assert torch.equal(data.inputs[4], expected)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pictures.npz"]


def test_pictures_of_several_sizes_are_refused_with_the_row(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(folder / "dog" / "9.png")
    with pytest.raises(DataError, match=r"train row 6: uint8 of shape \(3, 5, 5\), where row 0.*Resize"):
        pack(ImageFolder(folder), None, tmp_path / "pictures.npz")
    assert not (tmp_path / "pictures.npz").exists()


def test_samples_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train row 0: needs an \(input, target\) pair, got int"):
        pack(Squares(), None, tmp_path / "squares.npz")


def test_a_torchvision_data_set_with_nested_transforms_is_built_by_target(folder: Path) -> None:
    transforms: list[Any] = [
        {"target": "torchvision.transforms.v2.ToImage"},
        {"target": "torchvision.transforms.v2.RandomCrop", "size": 8},
        {"target": "torchvision.transforms.v2.ToDtype", "dtype": {"target": "torch.float32"}, "scale": True},
    ]
    transforms[2]["dtype"] = torch.float32
    pictures = build(
        {
            "target": "torchvision.datasets.ImageFolder",
            "root": str(folder),
            "transform": {"target": "torchvision.transforms.v2.Compose", "transforms": transforms},
        }
    )
    fetcher = Fetcher(pictures)
    rows = Rows(0, np.arange(6), np.arange(6))
    (images, labels), again = fetcher.fetch(rows).data, fetcher.fetch(rows).data
    assert images.shape == (6, 3, 8, 8)
    assert torch.equal(images, again[0])
    assert labels.tolist() == pictures.targets
