"""`train.channels_last`: a model's weights as convolutions on images want them."""

from itertools import chain

import torch
from torch import nn


def to_channels_last(model: nn.Module) -> None:
    """Lay out every four-dimensional parameter and buffer so; the numbers stay."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
