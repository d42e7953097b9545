"""At each save: whether all ranks hold the same weights and optimizer state, bit for bit.

Under DDP every rank makes each update for itself, from the same gradients. A rank whose memory, device or code
slipped once goes on beside the others without a word, and only rank 0's state would be saved.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dist_trainer.errors import RanksDiverged
from dist_trainer.training import digests
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.build import Parts
from dist_trainer.training.comparison import Difference, Fact, differences, first_difference, named
from dist_trainer.training.group_options import configured
from dist_trainer.training.task import MAIN

_NAMED = 4


class SameState:
    """Compares parameters, optimizer state, averages and the loss scale; buffers are each rank's own in training."""

    def __init__(self, parts: Parts, attempt: Attempt) -> None:
        self._parts = parts
        self._attempt = attempt
        self._agreed_at: int | None = None

    def check(self, step: int) -> None:
        """Raise RanksDiverged on every rank where one of them differs; a save is not to be begun then. Collective.

        One digest a rank is exchanged, and more only where they differ.
        """
        group = self._attempt.group
        if group.world_size == 1:
            return
        tensors, values = _state(self._parts)
        state = values | digests.of_tensors(tensors)
        found = differences(group, {"state": {name: Fact(value, value) for name, value in state.items()}})
        if not found:
            self._agreed_at = step
            return
        self._tell_first(found, tensors)
        raise RanksDiverged(self._message(found, step))

    def _tell_first(self, found: list[Difference], tensors: Mapping[str, Tensor]) -> None:
        """Where exactly, in the journal and the log: not in the message, by which a repeated error is known."""
        first = next((each for each in found if each.key in tensors and _has_one_shape(each)), None)
        if first is None:
            return
        element = first_difference(self._attempt.group, first.key, tensors[first.key])
        print(element, flush=True)
        if self._attempt.is_rank_zero:
            self._attempt.journal.event("alarm", message=element)

    def _message(self, found: list[Difference], step: int) -> str:
        odd = sorted({rank for each in found for rank in each.odd_ranks})
        who = f"{named(odd)} no longer agrees with the others" if odd else "the ranks no longer agree"
        if len(odd) > 1:
            who = who.replace("agrees", "agree")
        names = ", ".join(each.key for each in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        since = "" if self._agreed_at is None else f" All were alike at step {self._agreed_at}."
        return (
            f"step {step}: {who}: {names}{more} differ.{since} Nothing was saved, and the checkpoints from before "
            "are good. Run it again from the last one; if it comes again, suspect that machine's memory or GPU, "
            "machines of different kinds, or code that changes weights on one rank"
        )


def _has_one_shape(difference: Difference) -> bool:
    return len({fact.value.rpartition(" ")[0] if fact else None for fact in difference.facts}) == 1


def _state(parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and all other values by name as text."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, str] = {}
    for name, value in _named_state(parts):
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
        elif value is None or isinstance(value, bool | int | float | complex | str):
            values[name] = repr(value)
    return tensors, values


def _named_state(parts: Parts) -> Iterator[tuple[str, Any]]:
    named_parameters: dict[str, Tensor] = dict(parts.model.named_parameters())
    names = {id(parameter): name for name, parameter in named_parameters.items()}
    step = parts.train_step
    for phase, optimizer in step.optimizers.items():  # first: they may be why all else differs
        for number, options in enumerate(configured(optimizer)):
            for key, value in _leaves(options):
                yield f"optimizer option {key} of group {number}{_of(phase)}", value
    yield from ((f"parameter {name}", parameter) for name, parameter in named_parameters.items())
    for phase, optimizer in step.optimizers.items():
        for parameter, state in optimizer.state.items():
            for key, value in _leaves(state):
                yield f"optimizer state {key} of {names.get(id(parameter), 'a parameter')}{_of(phase)}", value
    if step.average is not None:
        for name, average in step.average.state_dict().items():
            yield f"average of {name}", average
    if step.scaler is not None:
        for key, value in step.scaler.state_dict().items():
            yield f"loss scaler's {key}", value


def _of(phase: str) -> str:
    return "" if phase == MAIN else f" of phase {phase}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(number), part) for number, part in enumerate(value)]
    else:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{path}.{key}" if path else key)
