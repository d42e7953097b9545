"""The exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- decay * average + (1 - decay) * weight after every update; buffers are not averaged.

    Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992), in the exponential form.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._average = [p.detach().clone(memory_format=torch.preserve_format) for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """After an update."""
        torch._foreach_lerp_(self._average, self._weights, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averages inside this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._average, strict=True):
            kept = weight.detach().clone(memory_format=torch.preserve_format)
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the averages; a parameter that was not averaged yet begins with its weights."""
        for name, weight, average in zip(self._names, self._weights, self._average, strict=True):
            average.copy_(state.get(name, weight))
