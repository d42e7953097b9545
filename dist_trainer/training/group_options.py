"""An optimizer's group options: what was configured, as opposed to what training has made of it since."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_PARAMETERS = ("params", "param_names")


def plain(value: Any) -> Any:
    """The value without tensors and shared containers: it can be kept, saved and compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [plain(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without its parameters."""
    return {key: value for key, value in group.items() if key not in _PARAMETERS}


def configured(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Each group's options in plain values; as they were configured, if asked before a schedule is made."""
    return [plain(options(group)) for group in optimizer.param_groups]


def load_state(
    optimizer: Optimizer,
    state: dict[str, Any],
    *,
    before: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    scheduled: Collection[str],
) -> None:
    """Take back a saved state, but for options configured otherwise `now` than `before`: these stay as they are.

    What the schedule sets is left to it. Raises what torch does where the state doesn't fit.
    """
    fresh = [options(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    _lay_out_as_parameters(optimizer)
    for group, built, old, new in zip(optimizer.param_groups, fresh, before, now, strict=True):
        for key, value in new.items():
            if key not in scheduled and (key not in old or old[key] != value):
                group[key] = built[key]


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """A fused kernel walks through memory, and train.channels_last may have changed since the state was saved."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            is_alike = isinstance(value, Tensor) and value.shape == parameter.shape
            if is_alike and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was configured otherwise, a phrase for each option, once for groups that agree."""
    pairs = ((key, old.get(key), new[key]) for old, new in zip(before, now, strict=False) for key in new)
    return list(dict.fromkeys(f"{key} {old!r} -> {new!r}" for key, old, new in pairs if old != new))


@contextmanager
def put_back(given: object) -> Iterator[None]:
    """After this block, an optimizer of the user's own has its options again: a schedule's last rate is not lr."""
    if not isinstance(given, Optimizer):
        yield
        return
    before = [copy.deepcopy(options(group)) for group in given.param_groups]
    try:
        yield
    finally:
        for group, kept in zip(given.param_groups, before, strict=True):
            for key in options(group):
                del group[key]
            group.update(kept)
