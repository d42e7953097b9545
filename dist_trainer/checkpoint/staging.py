"""A copy of the training's tensors in CPU memory, made on the training thread and written from another."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dist_trainer.checkpoint.state import Captured
from dist_trainer.checkpoint.tensors import identity, is_dense


class Staging:
    """CPU buffers that are kept from save to save: fresh memory costs more than the copy into it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, captured: Captured) -> Captured:
        """The same state in the kept buffers; valid until the next call. Tied tensors stay tied."""
        used: dict[str, Tensor] = {}
        model = self._copy("model/", captured.model, used)
        training = self._copy("training/", captured.training, used)
        self._buffers = used
        if any(tensor.is_cuda for tensor in (*captured.model.values(), *captured.training.values())):
            torch.cuda.synchronize()  # once, after all copies are under way
        return Captured(model, training, captured.values)

    def _copy(self, prefix: str, tensors: Mapping[str, Tensor], used: dict[str, Tensor]) -> dict[str, Tensor]:
        first: dict[tuple[object, ...], str] = {}
        copies = {}
        for name, tensor in tensors.items():
            known = prefix + first.setdefault(identity(tensor), name)
            if known not in used:
                used[known] = self._buffer(known, tensor)
                used[known].copy_(tensor, non_blocking=True)
            copies[name] = used[known]
        return copies

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        dense = is_dense(tensor.shape, tensor.stride())
        strides = tensor.stride() if dense else torch.empty(tensor.shape, device="meta").stride()
        kept = self._buffers.get(name)
        if (
            kept is not None
            and (kept.shape, kept.stride()) == (tensor.shape, strides)
            and kept.dtype == tensor.dtype
        ):
            return kept
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
