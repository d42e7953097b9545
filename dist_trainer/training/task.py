"""What a batch means: how a model is called on it, and what its loss is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_trainer.training.loss import PER_CLASS, summed

MAIN = "main"


class Loss(NamedTuple):
    """A sum and what to divide it by, both of this rank's rows alone.

    The gradient of a step is the sum over all ranks and micro-batches divided by their weights' sum, so it is
    the same however the rows were dealt out. For a loss that shall be summed, not averaged, see
    `Task.averaged`.
    """

    sum: Tensor
    weight: Tensor | float


class Task:
    """Subclass it for anything that is not (input, target).

    `forward` and `loss` are enough for most; `training_loss` is the place for a step that calls the model
    several times; `phases` and `optimizers` are for more than one optimizer. State that goes from batch to
    batch belongs to the rank that made it, and is saved through `state_dict`.
    """

    averaged: bool = (
        True  # False: the step's gradient is the plain sum over all rows, and weights are ignored
    )

    def __init__(self, loss: Callable[..., Tensor] | None = None) -> None:
        self.loss_function = loss

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """The model's output for a batch."""
        return model(batch)

    def loss(self, output: Any, batch: Any) -> Loss:
        """The loss of an output, summed over the batch's rows; a batch may have no row at all."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss(output, batch) -> Loss")

    def training_loss(self, model: nn.Module, batch: Any, phase: str) -> Loss:
        """The loss that one phase of a step descends on."""
        return self.loss(self.forward(model, batch), batch)

    def target(self, batch: Any) -> Any:
        """What the metrics compare the output with."""
        return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None

    def prediction(self, output: Any) -> Tensor | Mapping[str, Tensor]:
        """What `predict` writes, one row per sample."""
        if isinstance(output, (tuple, list)):
            return {f"output_{index}": value for index, value in enumerate(output)}
        result: Tensor | Mapping[str, Tensor] = output
        return result

    def optimizers(self, model: nn.Module, make: Callable[[nn.Module], Optimizer]) -> dict[str, Optimizer]:
        """The optimizer of each phase; `make` builds the configured one over a module's parameters."""
        return {MAIN: make(model)}

    def phases(self, step: int) -> Sequence[str]:
        """The phases of a step in order; each is a forward, a backward and a step of its own optimizer."""
        return (MAIN,)

    def state_dict(self) -> dict[str, Any]:
        """What this rank carries from batch to batch: tensors, numbers, strings, lists and dicts.

        The same keys from the start. An evaluation puts back what was there before it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Supervised(Task):
    """(input, target) batches: the model is called with the input, the loss with output and target.

    The input may be a tuple (the model's positional arguments) or a dict (its keywords).
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self._summed = summed(loss)
        super().__init__(self._summed.function)
        self.averaged = self._summed.averaged

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """The output for `batch[0]`."""
        inputs = batch[0]
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)

    def prediction(self, output: Any) -> Tensor | Mapping[str, Tensor]:
        """The output, and for a loss over classes the most likely one beside it."""
        if isinstance(self.loss_function, PER_CLASS) and isinstance(output, Tensor) and output.dim() > 1:
            return {"class": output.argmax(dim=1), "prediction": output}
        return super().prediction(output)

    def loss(self, output: Any, batch: Any) -> Loss:
        """The configured loss against `batch[1]`."""
        return Loss(*self._summed(output, batch[1]))


def move_held(task: Task, device: torch.device) -> None:
    """Put the modules that a task holds where the model is: a loss with class weights, a teacher."""
    for held in vars(task).values():
        if isinstance(held, nn.Module):
            held.to(device)
