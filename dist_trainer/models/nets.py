"""Small reference nets: plain torch modules, whose names the examples' patterns match."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; any input is flattened to (rows, sizes[0]).

    `sizes` holds the width of input, hidden layers and output; `dropout` follows each hidden layer.
    """

    def __init__(self, sizes: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for number, (width, following) in enumerate(pairwise(sizes)):
            if number:
                layers += [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
            layers.append(nn.Linear(width, following))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layers(inputs)
        return output


class SimpleNet(MLP):
    """One hidden layer of 128 on flattened images of 784 pixels (MNIST)."""

    def __init__(self, *, inputs: int = 784, hidden: int = 128, num_classes: int = 10) -> None:
        super().__init__([inputs, hidden, num_classes])


class SimpleCNN(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels, each with 2x2 pooling, and three linear layers.

    Takes images of (channels, image_size, image_size); with the defaults, CIFAR-10's.
    """

    def __init__(self, *, num_classes: int = 10, channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.features(images))
        return output


class LSTMForecaster(nn.Module):
    """An LSTM over a window of shape (length, inputs); its last state gives the next `horizon` points."""

    def __init__(self, *, hidden: int = 50, layers: int = 1, inputs: int = 1, horizon: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, windows: Tensor) -> Tensor:
        states, _ = self.lstm(windows)
        output: Tensor = self.head(states[:, -1])
        return output


class Logistic(nn.Module):
    """One linear unit and a sigmoid: probabilities of shape (rows,) for BCELoss."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(features)).squeeze(1)
