"""The batches of each step, the next ones read and on their way to the device while a step still runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dist_trainer.training.batch import Batch, tensors_of


class Ahead:
    """One step ahead of training. On a GPU the copies go over a stream of their own.

    `early`: the next step's batches may be read before this step is over, since that draws nothing from the
    generators that the step draws from.
    """

    def __init__(self, batches: Iterator[list[Batch]], device: torch.device, *, early: bool) -> None:
        self._batches = batches
        self._device = device
        self._early = early
        self._held: list[Batch] | Exception | None = None
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fetch(self) -> None:
        """Read the next step's batches now, if that may be done early; an error is kept until they are asked for."""
        if self._early and self._held is None:
            self._held = self._read()

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> list[Batch]:
        held = self._read() if self._held is None else self._held
        self._held = None
        if isinstance(held, Exception):
            raise held
        if self._stream is not None:
            self._hand_over(held)
        return held

    def _read(self) -> list[Batch] | Exception:
        try:
            with torch.enable_grad():  # as anywhere else, though the end of a backward pass has turned it off
                batches = next(self._batches)
                if self._stream is None:
                    return batches
                with torch.cuda.stream(self._stream):
                    return [batch.on(self._device) for batch in batches]
        except Exception as error:
            return error

    def _hand_over(self, batches: Sequence[Batch]) -> None:
        """Let what computes wait for the copies, and keep their memory until it has used it."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for batch in batches:
            for tensor in tensors_of(batch.data):
                tensor.record_stream(computing)
