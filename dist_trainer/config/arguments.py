"""Whether arguments fit a callable, said before it is called."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dist_trainer.config.near import did_you_mean, near_names
from dist_trainer.config.schema import ModelConfig, SchedulerConfig, Target
from dist_trainer.errors import ConfigError

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # all but the first by torch.save
Targeted = Target | SchedulerConfig | Mapping[str, Any]
Parameters = Mapping[str, inspect.Parameter]


def parts(target: Targeted) -> tuple[str, dict[str, Any]]:
    """The import path and the arguments. A model's `weights` are an argument unless they name a file."""
    if isinstance(target, Mapping):
        return str(target["target"]), {key: value for key, value in target.items() if key != "target"}
    arguments = target.arguments
    if isinstance(target, ModelConfig) and target.weights and not target.weights.endswith(WEIGHT_FILES):
        arguments["weights"] = target.weights
    assert target.target is not None, "a scheduler of warm-up alone has nothing to build"
    return target.target, arguments


def parameters_of(function: Callable[..., Any]) -> Parameters | None:
    """What the callable takes, by name; None if it does not tell."""
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):
        return None


def missing(parameters: Parameters, supplied: int, given: set[str]) -> list[str]:
    """The parameters without a default that nobody gives; the first `supplied` ones are the caller's."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in list(parameters.items())[supplied:]
        if parameter.default is parameter.empty and parameter.kind not in optional and name not in given
    ]


def is_used_itself(function: Callable[..., Any], given: set[str]) -> bool:
    """Whether a target is a function to hand on rather than to call (the rule is in targets.py)."""
    if isinstance(function, type):
        return False
    parameters = parameters_of(function)
    return bool(missing(parameters, 0, given)) if parameters is not None else not given


def misfits(
    path: str,
    parameters: Parameters,
    arguments: Mapping[str, Any],
    *,
    supplied: int = 0,
    implied: frozenset[str] = frozenset(),
    complete: bool = True,
) -> list[tuple[str, str]]:
    """What keeps the arguments from fitting: (argument, or "" for a missing one; message to follow its key).

    The first `supplied` parameters and those `implied` by name are the toolkit's to give. Where the call is
    not `complete`, others may come later.
    """
    own = list(parameters)[:supplied]
    accepted = [name for name in _named(parameters) if name not in own]
    unknown = [name for name in arguments if name not in accepted and name not in own]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        unknown = []
    shown = ", ".join(accepted) or "no arguments"
    found = [
        (name, f"is not an argument of {path}; accepted: {shown}{did_you_mean(name, accepted)}")
        for name in unknown
    ]
    found += [
        (name, f"is what the toolkit gives to {path}; leave it out") for name in arguments if name in own
    ]
    if complete:
        given = {*arguments, *implied, *(near for name in unknown for near in near_names(name, accepted))}
        lacking = missing(parameters, supplied, given)
        found += [("", f"lacks {name}, which {path} requires; accepted: {shown}") for name in lacking]
    return found


def _named(parameters: Parameters) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]


def by_position(parameters: Parameters, built: dict[str, Any]) -> list[Any]:
    """Take out of `built` what goes by position: `*args`, all before it, and positional-only ones."""
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    spread = next((name for name, kind in kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), None)
    if spread not in built:
        only = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY]
        return [built.pop(name) for name in only if name in built]
    if not isinstance(built[spread], list):
        raise ConfigError(f"{spread} must be a list, one item for each argument, got {built[spread]!r}")
    before = list(kinds)[: list(kinds).index(spread)]
    return [*(built.pop(name) for name in before if name in built), *built.pop(spread)]
