"""The smallest training there is: one linear layer, on rows that are tensors already."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

ROWS = 4096
BATCH_SIZE = 16  # a rank
SHAPE = (3, 32, 32)
CLASSES = 10


def dataset() -> TensorDataset:
    """Inputs as large as CIFAR-10's."""
    generator = torch.Generator().manual_seed(1)
    inputs: Tensor = torch.rand(ROWS, *SHAPE, generator=generator)
    return TensorDataset(inputs, torch.randint(0, CLASSES, (ROWS,), generator=generator))


def model() -> nn.Module:
    """Flattened inputs to classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], CLASSES))
