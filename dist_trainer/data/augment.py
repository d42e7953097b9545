"""Augmentations of a whole batch of images at once, each sample's draws made from its own key.

An augmentation is a callable `(images, keys, stream) -> images` on (rows, channels, height, width), uint8 or
float; `stream` tells two of the same kind in one list apart (see draws.py). What it does to a sample must
depend on the sample and its key alone, never on its neighbours in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_trainer.data.draws import Keys, integers, uniform

Augmentation = Callable[[Tensor, Keys, int], Tensor]


@dataclass(frozen=True)
class RandomCrop:
    """Pad all four sides with zeros, then cut the original size out at a random place."""

    padding: int = 4

    def __call__(self, images: Tensor, keys: Keys, stream: int) -> Tensor:
        height, width = images.shape[-2:]
        places = 2 * self.padding + 1
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)
        place = torch.from_numpy(integers(keys, stream, places * places))
        return windows[torch.arange(len(images)), :, place // places, place % places]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror an image left to right with this probability."""

    probability: float = 0.5

    def __call__(self, images: Tensor, keys: Keys, stream: int) -> Tensor:
        chosen = torch.from_numpy(uniform(keys, stream) < self.probability)
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Normalize:
    """Subtract the mean and divide by the standard deviation, each one number or one per channel."""

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.std = torch.tensor(std, dtype=torch.float32)
        if not bool((self.std > 0).all()):
            raise ValueError(f"normalize.std must be above 0, got {std}")

    def __call__(self, batch: Tensor) -> Tensor:
        """The normalised float batch, its channels in dimension 1."""
        shape = (-1, *[1] * (batch.dim() - 2)) if self.mean.dim() else ()
        std = self.std.reshape(shape) if shape else self.std
        mean = self.mean.reshape(shape) if shape else self.mean
        return batch.sub(mean).div_(std)
