"""Augmentations of a whole batch of images at once, each sample's draws made from its own key.

An augmentation is a callable `(images, keys, stream) -> images` on (rows, channels, height, width), uint8 or
float; `stream` tells two of the same kind in one list apart (see draws.py). What it does to a sample must
depend on the sample and its key alone, never on its neighbours in the batch. One that says `any_device = True`
works wherever the images are, and is then left to the GPU where one trains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dist_trainer.data.draws import Keys, integers, uniform

Augmentation = Callable[[Tensor, Keys, int], Tensor]


@dataclass(frozen=True)
class RandomCrop:
    """Pad all four sides with zeros, then cut the original size out at a random place."""

    any_device: ClassVar[bool] = True
    padding: int = 4

    def __call__(self, images: Tensor, keys: Keys, stream: int) -> Tensor:
        height, width = images.shape[-2:]
        places = 2 * self.padding + 1
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)
        place = torch.from_numpy(integers(keys, stream, places * places)).to(images.device)
        row = torch.arange(len(images), device=images.device)
        return windows[row, :, place // places, place % places]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror an image left to right with this probability."""

    any_device: ClassVar[bool] = True
    probability: float = 0.5

    def __call__(self, images: Tensor, keys: Keys, stream: int) -> Tensor:
        chosen = torch.from_numpy(uniform(keys, stream) < self.probability).to(images.device)
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Normalize:
    """Subtract the mean and divide by the standard deviation, each one number or one per channel."""

    any_device = True

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
        return batch.sub(mean.to(batch.device)).div_(std.to(batch.device))


@dataclass(frozen=True)
class Finish:
    """What makes a batch out of stored samples: the augmentations, floats from 0 to 1, the normalisation."""

    augment: tuple[Augmentation, ...]
    normalize: Callable[[Tensor], Tensor] | None

    @property
    def any_device(self) -> bool:
        """Whether all of it works on a device other than the CPU."""
        steps = [*self.augment, *([self.normalize] if self.normalize else [])]
        return all(getattr(step, "any_device", False) for step in steps)

    def __call__(self, batch: tuple[Tensor, Tensor], keys: Keys) -> tuple[Tensor, Tensor]:
        """The (inputs, targets) to train on, where the stored ones are."""
        inputs, targets = batch
        for stream, augmentation in enumerate(self.augment):
            inputs = augmentation(inputs, keys, stream)
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(torch.float32).div_(255)
        return self.normalize(inputs) if self.normalize else inputs, targets
