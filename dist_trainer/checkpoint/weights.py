"""Weights that were made elsewhere."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_trainer.checkpoint.tensors import from_buffer
from dist_trainer.errors import CorruptCheckpoint, UsageError


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors from a .safetensors, .pt or .pth file: the one door for weights from elsewhere.

    A state dict inside a checkpoint of a common shape (`state_dict`, `model_state_dict`, `model`) is found,
    and DDP's `module.` prefix is taken off. Nothing but tensors and plain values is ever unpickled. Raises
    UsageError.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        try:
            return from_buffer(path.read_bytes())
        except CorruptCheckpoint as error:
            raise UsageError(f"{path}: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise UsageError(f"{path}: weights are read from .safetensors, .pt and .pth files")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError for a bad file
        reason = str(error).split("\n", 1)[0]
        raise UsageError(
            f"{path}: not a file of plain weights (torch.save of a state dict): {reason}"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    is_state = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        raise UsageError(f"{path}: no state dict (names and tensors) in this file")
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in content.items()}
