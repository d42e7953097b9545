"""A section's `target` becomes an object: arguments fitted, nested targets built first.

A target is a class or a function, and is called with the section's other keys. Two rules go beyond that:

- A *function* whose required arguments are not all given is not called but used itself, with the given ones
  bound: `loss: {target: torch.nn.functional.mse_loss}` is that function, and with `reduction: sum` it is the
  function with its reduction set. So is `collate: {target: my.collate}`. A function that does not tell its
  arguments (many of torch's own) is called if any are given, and used itself otherwise.
- For a callable with a parameter like `*args`, the key `args` holds a list:
  `{target: torch.nn.Sequential, args: [{target: torch.nn.Flatten}, {target: torch.nn.ReLU}]}`.
"""

import functools
from collections.abc import Mapping
from typing import Any

from dist_trainer.config.arguments import Targeted, by_position, is_used_itself, misfits, parameters_of, parts
from dist_trainer.config.check import check_targets
from dist_trainer.config.imports import import_target
from dist_trainer.config.references import resolve
from dist_trainer.errors import ConfigError

__all__ = ["build", "check_targets", "fill", "import_target"]


def build(target: Targeted, *args: Any, **keywords: Any) -> Any:
    """Call the target with `args`, its own arguments (nested targets built first) and `keywords`.

    Raises ConfigError if it cannot be imported, or if its arguments do not fit; what the callable itself
    raises comes out as it is, with a note that names the target.
    """
    path, arguments = parts(target)
    return _call(path, args, {**arguments, **keywords})


def fill(target: Targeted, *args: Any, **defaults: Any) -> Any:
    """As `build`; a default is passed only where the callable takes it and the section does not give it."""
    path, arguments = parts(target)
    parameters = parameters_of(import_target(path)) or {}
    taken = {name: value for name, value in defaults.items() if name in parameters and name not in arguments}
    return _call(path, args, {**arguments, **taken})


def _call(path: str, args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    function = import_target(path)
    parameters = parameters_of(function)
    used_itself = not args and is_used_itself(function, set(arguments))
    if parameters is not None:
        problems = misfits(path, parameters, arguments, supplied=len(args), complete=not used_itself)
        if problems:
            raise ConfigError(
                "\n".join(f"{path}: {f'{name} {message}'.strip()}" for name, message in problems)
            )
    built = {name: _built(value) for name, value in arguments.items()}
    if used_itself:
        return functools.partial(function, **built) if built else function
    args = (*args, *by_position(parameters or {}, built))
    try:
        return function(*args, **built)
    except Exception as error:
        error.add_note(f"while building {path}")
        raise


def _built(value: Any) -> Any:
    """`value` with every dict that holds a `target` built, innermost first, and references put in."""
    if isinstance(value, Mapping):
        if isinstance(value.get("target"), str):
            return build(value)
        return {key: _built(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item) for item in value]
    return resolve(value)
