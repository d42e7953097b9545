"""Weights that were made elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_trainer.checkpoint.tensors import from_buffer
from dist_trainer.config.arguments import WEIGHT_FILES
from dist_trainer.errors import ConfigError, CorruptCheckpoint, UsageError


def start_from(model: nn.Module, path: str | Path) -> None:
    """Load a file's weights: by the model's own `load_pretrained(state)` where it has one, else by name and shape.

    A prefix that all of the model's tensors have in the file (`model.` in Lightning's, `_orig_mod.` in those of a
    compiled module) is left out. Says which tensors stay as they were drawn; raises ConfigError where none fits,
    or where two prefixes fit as well.
    """
    given, own = load_weights(path), model.state_dict()
    own_door: Any = getattr(model, "load_pretrained", None)
    if own_door is not None:
        own_door(given)
        return
    prefix = _prefix(given, own, path)
    named = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    fitting = {name: value for name, value in named.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    without = f", where their names begin with {prefix}" if prefix else ""
    missing = [name for name in own if name not in named]
    shaped = [
        f"{name} ({_shape(value)} in the file, {_shape(own[name])} in the model)"
        for name, value in named.items()
        if name in own and name not in fitting
    ]
    said = f"model.weights: {len(fitting)} of {len(own)} tensors from {path}{without}"
    said += f"; not in it: {_some(missing)}" if missing else ""
    print(f"{said}; left as they are, of another shape: {_some(shaped)}" if shaped else said)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _prefix(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> str:
    """What stands before the model's own names in the file: that with which most tensors fit, at best nothing."""
    fits: Counter[str] = Counter()
    for name, value in given.items():
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        fits.update(name[:at] for at in starts if name[at:] in own and own[name[at:]].shape == value.shape)
    most = max(fits.values(), default=0)
    best = sorted(prefix for prefix, count in fits.items() if count == most)
    if not best:
        raise ConfigError(
            f"model.weights: no tensor of {path} fits the model: the file has {', '.join(list(given)[:4])}, ..., "
            f"the model {', '.join(list(own)[:4])}, ..."
        )
    if len(best) > 1 and "" not in best:
        raise ConfigError(
            f"model.weights: {path} has the model's tensors {len(best)} times, named {' and '.join(best)}; save the "
            "ones to start from by themselves: torch.save(module.state_dict(), 'weights.pt')"
        )
    return "" if "" in best else best[0]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors from a .safetensors file or one of torch.save: the one door for weights from elsewhere.

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
    if path.suffix not in WEIGHT_FILES:
        raise UsageError(f"{path}: weights are read from {', '.join(WEIGHT_FILES)} files")
    return _state_dict(read_saved(path), path)


def read_saved(path: Path) -> Any:
    """What torch.save wrote there, as it was: nothing but tensors and plain values is ever unpickled.

    Raises UsageError.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError for a bad file
        reason = str(error).split("\n", 1)[0].partition(" This file can still be loaded")[0]  # unsafely
        raise UsageError(
            f"{path}: not a file of plain weights: {reason.rstrip('. ')}; where it was made, save the weights alone: "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error


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
