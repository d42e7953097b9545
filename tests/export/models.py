"""Small models that each ask something else of an exporter, and data for them."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_trainer.training.task import Supervised

ROWS = 20


class Samples(Dataset[Any]):
    """Rows of normal numbers of one shape, or of several for a model of several inputs, each with a class."""

    classes = ("no", "yes")
    preprocessing = ({"subtract": 3.0},)

    def __init__(self, shapes: list[list[int]]) -> None:
        generator = torch.Generator().manual_seed(7)
        self.parts = [torch.randn(ROWS, *shape, generator=generator) for shape in shapes]

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Any, int]:
        parts = tuple(part[index] for part in self.parts)
        return (parts if len(parts) > 1 else parts[0]), index % 2


class TwoInputs(nn.Module):
    """A vector and a matrix, to two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 4)
        self.right = nn.Linear(6, 4)

    def forward(self, vector: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.left(vector)) + self.right(matrix.flatten(1))
        return hidden, hidden.sum(1)


class Normed(nn.Module):
    """A convolution with a batch norm that has seen a little data, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 2)
        )
        with torch.no_grad():
            self.layers(torch.randn(16, 2, 5, 5) * 3 + 1)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.layers(images)
        return output


class Branching(nn.Module):
    """Goes one way or the other by the values it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        if bool(inputs[0, 0] > 0):
            return self.up(inputs)  # type: ignore[no-any-return]
        return self.down(inputs)  # type: ignore[no-any-return]


class NotScriptable(nn.Module):
    """Takes keywords alone, which TorchScript's compiler does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: Tensor, **options: Any) -> Tensor:
        output: Tensor = self.layer(inputs)
        return output * options.get("scale", 1.0)


class OfOneSize(nn.Module):
    """Gives other outputs for seven rows than its trace: noise is drawn anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layer(inputs)
        return output + torch.rand_like(output)


class Answer(OrderedDict[str, Tensor]):
    """A mapping of a class of its own, as models of other libraries give."""


class Answering(nn.Module):
    """Gives such a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Answer:
        hidden = self.layer(inputs)
        return Answer(logits=hidden, sums=hidden.sum(1))


class Elsewhere(Supervised):
    """Never calls the model itself."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model.layer(batch[0])  # type: ignore[operator]
