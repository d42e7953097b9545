"""Small models that each ask something else of an exporter, and data for them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass
class Record:
    """Inputs or outputs as a dataclass."""

    rows: Tensor
    scale: float = 1.0


class Pair(NamedTuple):
    """Inputs as a named tuple."""

    rows: Tensor
    again: Tensor


class Held:
    """Inputs as an object of a library's own, which moves itself."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def to(self, device: Any, **options: Any) -> "Held":
        return Held(self.rows.to(device, **options))


class Wrapped(nn.Module):
    """Takes any of these and gives a dataclass; each name in its state begins with module."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Counting(4, 2)

    def forward(self, inputs: Any) -> Record:
        return Record(self.module(inputs.rows if hasattr(inputs, "rows") else inputs))


class Counting(nn.Linear):
    """Has a state that is no tensor."""

    steps = 3

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class Unusual(Supervised):
    """Calls the model with an unusual kind of the batch's rows."""

    def __init__(self, loss: Any, kind: str) -> None:
        super().__init__(loss)
        self.kind = kind

    def forward(self, model: nn.Module, batch: Any) -> Any:
        kinds = {"record": Record, "pair": lambda rows: Pair(rows, rows), "held": Held, "list": list}
        return model(kinds[self.kind](batch[0]))


class Summing(nn.Module):
    """Takes one tensor a row, and gives as many, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, rows: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"sums": self.layer(row)} for row in rows]


class Elsewhere(Supervised):
    """Never calls the model itself."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model.layer(batch[0])  # type: ignore[operator]
