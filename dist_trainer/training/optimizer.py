"""Parameters, optimizers and a schedule's arguments, from the configuration's words."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dist_trainer.config.schema import GroupConfig
from dist_trainer.errors import ConfigError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop the gradients of the parameters whose names match; raises ConfigError where none does."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        for name in _matching(names, pattern, key="train.freeze"):
            names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise ConfigError(f"train.freeze {list(patterns)} leaves no parameter to train")


def set_train_mode(model: nn.Module) -> None:
    """Training mode, except for batch norms that are frozen whole: their statistics stay as they were loaded."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if "BatchNorm" in type(module).__name__ and own and not any(p.requires_grad for p in own):
            module.eval()


def parameter_groups(
    model: nn.Module, groups: Sequence[GroupConfig], lr: float | None
) -> list[dict[str, Any]]:
    """One group per pattern and one for the rest; a parameter belongs to the first pattern that matches it.

    Raises ConfigError for a pattern that matches nothing, or lr_scale without an optimizer.lr.
    """
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    result: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        key = f"optimizer.groups[{index}].match"
        names = _matching(dict(model.named_parameters()), group.match, key=key)
        options = dict(group.overrides)
        if group.lr_scale != 1.0:
            if lr is None:
                raise ConfigError(
                    f"optimizer.groups[{index}].lr_scale needs optimizer.lr, which is not given"
                )
            options["lr"] = lr * group.lr_scale
        chosen = [(name, free.pop(name)) for name in names if name in free]
        if chosen:
            result.append({"params": chosen, **options})
    if free:
        result.insert(0, {"params": list(free.items())})
    return result


def _matching(names: Iterable[str], pattern: str, *, key: str) -> list[str]:
    every = list(names)
    found = [name for name in every if fnmatchcase(name, pattern)]
    if not found:
        shown = ", ".join(every[:12]) + (", ..." if len(every) > 12 else "")
        raise ConfigError(f"{key}: {pattern!r} matches no parameter; the parameters are {shown}")
    return found


def make_optimizer(
    factory: Callable[..., Optimizer],
    model: nn.Module,
    groups: Sequence[GroupConfig],
    lr: float | None,
    *,
    name: str | None = None,
) -> Optimizer:
    """Call the factory with named parameters where it can use them, else with the parameters.

    Raises ConfigError with the optimizer's own words where it refuses them (Muon: matrices only).
    """
    named = parameter_groups(model, groups, lr)
    name = name or getattr(getattr(factory, "func", factory), "__name__", repr(factory))
    try:
        if len(named) == 1 and len(named[0]) == 1:
            return factory(named[0]["params"])
        return factory(named)
    except (TypeError, AttributeError, ValueError) as error:
        refusal = error
    plain = [{**group, "params": [parameter for _, parameter in group["params"]]} for group in named]
    try:
        return factory(plain)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        also = f" ({refusal})" if str(refusal) != str(error) else ""
        raise ConfigError(f"optimizer {name} refuses these parameters: {error}{also}") from error


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step cannot be taken without evaluating the loss again (LBFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def fill_schedule_length(target: Callable[..., Any], arguments: dict[str, Any], steps: int) -> dict[str, Any]:
    """The arguments with the run's length where the schedule needs one that was not given."""
    accepted = inspect.signature(target).parameters
    filled = dict(arguments)
    for name in ("T_max", "total_steps", "total_iters"):
        if name in accepted and name not in filled and "epochs" not in filled:
            filled[name] = max(1, steps)
    return filled


def check_schedule_unit(name: str, arguments: dict[str, Any], *, epochs: int | None, steps: int) -> None:
    """Raise ConfigError where a schedule's numbers count epochs: here every one counts steps."""
    if not epochs or steps <= 4 * epochs:
        return
    per_epoch = steps // epochs
    for key in ("T_max", "step_size", "milestones", "total_iters", "T_0", "total_steps"):
        value = arguments.get(key)
        last = max(value, default=0) if isinstance(value, (list, tuple)) else value
        if not isinstance(last, int) or not 1 <= last <= epochs:
            continue
        if key not in ("total_iters", "T_0") or last < per_epoch:  # else some steps of warm-up can be meant
            raise ConfigError(
                f"scheduler.{key} is {value}, and a scheduler is stepped at every update here: {name} would be "
                f"through with it after {last} of {steps} steps; {last} epochs are {last * per_epoch} steps"
            )
    gamma = arguments.get("gamma")
    if name == "ExponentialLR" and isinstance(gamma, float) and 0 < gamma < 1 and gamma**steps < 1e-9:
        raise ConfigError(
            f"scheduler.gamma is {gamma}, and a scheduler is stepped at every update here: after {steps} steps "
            f"the rate would be {gamma**steps:.0e} of the first; per epoch it is {gamma ** (1 / per_epoch):.8g}"
        )


def check_built_schedule(schedule: LRScheduler, *, epochs: int | None, steps: int) -> None:
    """The same for a scheduler that was built in Python."""
    arguments = {name: getattr(schedule, name, None) for name in ("T_max", "step_size", "gamma")}
    arguments["milestones"] = list(getattr(schedule, "milestones", ()))
    check_schedule_unit(type(schedule).__name__, arguments, epochs=epochs, steps=steps)
