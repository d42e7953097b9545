"""CIFAR-10 as torchvision keeps and transforms it, one PIL image at a time, and as tensors ready to be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

BATCH_SIZE = 64  # a rank
EVAL_BATCH_SIZE = 500
MEAN, STD = 0.5, 0.5
_NORMALIZED = [transforms.ToTensor(), transforms.Normalize((MEAN,) * 3, (STD,) * 3)]
_AUGMENTED = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]


class Pictures(Dataset[tuple[Tensor, int]]):
    """`__getitem__` is that of torchvision.datasets.CIFAR10, which keeps its images the same way."""

    def __init__(self, path: Path, transform: Callable[[Any], Tensor]) -> None:
        with np.load(path) as arrays:
            self.data = np.ascontiguousarray(arrays["train_x"].transpose(0, 2, 3, 1))
            self.targets: list[int] = arrays["train_y"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data[index])
        return self.transform(image), self.targets[index]


def pictures(path: Path, *, augmented: bool) -> Pictures:
    """The training images, normalized; `augmented`: cropped and flipped at random as well."""
    return Pictures(path, transforms.Compose([*(_AUGMENTED if augmented else []), *_NORMALIZED]))


def tensors(path: Path) -> TensorDataset:
    """The training images as normalized floats: nothing is left to do at each evaluation."""
    with np.load(path) as arrays:
        inputs = torch.from_numpy(arrays["train_x"]).to(torch.float32)
        return TensorDataset(inputs.div_(255).sub_(MEAN).div_(STD), torch.from_numpy(arrays["train_y"]))
