"""A model whose work is to sleep: as many ranks as you like compute at once on two cores, each for a known time."""

import time
from typing import Any

import torch
from torch import Tensor, nn


class _Sleep(torch.autograd.Function):
    """Passes its input on after a while, and back again; its weight gets a gradient of the weight's own size."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s, ctx.shape = backward_s, weight.shape
        time.sleep(forward_s)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return gradients[0], torch.zeros(ctx.shape), None, None


class Sleeping(nn.Module):
    """`layers` layers of `layer_mb` MiB of weights that sleep so long each way; gives its input's first columns."""

    def __init__(
        self, *, layers: int, layer_mb: float, forward_ms: float, backward_ms: float, outputs: int
    ) -> None:
        super().__init__()
        numbers = int(layer_mb * 2**20) // 4
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(numbers)) for _ in range(layers))
        self._forward_s, self._backward_s = forward_ms / 1000, backward_ms / 1000
        self._outputs = outputs

    def forward(self, inputs: Tensor) -> Tensor:
        for weight in self.weights:
            inputs = _Sleep.apply(inputs, weight, self._forward_s, self._backward_s)
        return inputs[:, : self._outputs]
