"""The model and the data of this project: change both.

Any torch.nn.Module is a model here, and any class with __len__ and __getitem__ a data set; nothing is registered.
What train.yaml says beside `target` are the arguments of __init__.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Spirals(Dataset[tuple[Tensor, Tensor]]):
    """Points in the plane, each on one of three arms of a spiral. To put your own data here: open or list your
    files in __init__, and return one sample and its target in __getitem__."""

    ARMS = 3

    def __init__(self, points: int, noise: float = 0.1, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)  # the same points in every process
        self.targets = torch.arange(points) % self.ARMS
        radius = torch.rand(points, generator=random)
        angle = 2 * math.pi * (self.targets / self.ARMS + radius)
        exact = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.points = exact + noise * radius[:, None] * torch.randn(points, 2, generator=random)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.targets[index]


class Net(nn.Module):
    """Two hidden layers; one number a class comes out, as CrossEntropyLoss wants it."""

    def __init__(self, hidden: int = 64, classes: int = Spirals.ARMS) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """(rows, 2) to (rows, classes)."""
        result: Tensor = self.layers(points)
        return result
