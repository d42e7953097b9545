"""From an import path to the class or function it names."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dist_trainer.config.near import did_you_mean
from dist_trainer.errors import ConfigError

CODE_FOLDER_VARIABLE = "DIST_TRAINER_CODE_FOLDER"  # the copy of the code that a job runs


def import_target(path: str) -> Callable[..., Any]:
    """The class or function at `path`, from an installed package or the current folder.

    Raises ConfigError that tells apart a module that does not exist, one that fails to import (with its
    error), and a name that the module does not have (with the near ones).
    """
    _make_code_importable()
    parts = path.split(".")
    module, depth = _deepest_module(parts)
    found: Any = module
    for position in range(depth, len(parts)):
        owner, name = ".".join(parts[:position]), parts[position]
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ConfigError(f"{path}: {_no_such_name(found, owner, name)}") from None
    if not callable(found):
        kind = "a module" if isinstance(found, ModuleType) else f"a value of type {type(found).__name__}"
        raise ConfigError(f"{path}: this is {kind}, not a class or function{_inside(found)}")
    return found  # type: ignore[no-any-return]


def code_folder() -> Path:
    """Where the user's own modules are: the current folder, or in a job the copy that stands for it."""
    return Path(os.environ.get(CODE_FOLDER_VARIABLE) or Path.cwd())


def _make_code_importable() -> None:
    """A console script has its own folder at the front of sys.path instead."""
    here = str(code_folder())
    if sys.path[:1] != [here] and (sys.path[:1] != [""] or here != str(Path.cwd())):
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # a user's file may be younger than the last look into its folder


def _deepest_module(parts: list[str]) -> tuple[ModuleType, int]:
    """The longest part of the path that is a module, and how many of its names that takes."""
    module = _import_module(parts, 1)
    if module is None:
        near = did_you_mean(parts[0], _top_level_modules())
        where = f"neither installed nor in {code_folder()}"
        raise ConfigError(f"{'.'.join(parts)}: there is no module {parts[0]}, {where}{near}")
    for depth in range(2, len(parts) + 1):
        if hasattr(module, parts[depth - 1]) and not isinstance(
            getattr(module, parts[depth - 1]), ModuleType
        ):
            return module, depth - 1
        deeper = _import_module(parts, depth)
        if deeper is None:
            return module, depth - 1
        module = deeper
    return module, len(parts)


def _import_module(parts: list[str], depth: int) -> ModuleType | None:
    """The module named by the first `depth` parts; None if there is none."""
    name = ".".join(parts[:depth])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise _broken_module(parts, name, error) from error
    except (Exception, SystemExit) as error:  # a user's module may do anything
        raise _broken_module(parts, name, error) from error


def _broken_module(parts: list[str], name: str, error: BaseException) -> ConfigError:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    what = error.msg if isinstance(error, SyntaxError) else error
    return ConfigError(
        f"{'.'.join(parts)}: module {name} fails to import: {type(error).__name__}: {what}{place}"
    )


def _no_such_name(owner: Any, owner_name: str, name: str) -> str:
    kind = "module" if isinstance(owner, ModuleType) else "class"
    return f"{kind} {owner_name} has no {name}{did_you_mean(name, _names_in(owner))}"


def _names_in(owner: Any) -> list[str]:
    names = [name for name in dir(owner) if not name.startswith("_")]
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        names += [module.name for module in pkgutil.iter_modules(owner.__path__)]
    return list(dict.fromkeys(names))


def _inside(found: Any) -> str:
    """The classes of a module that was named instead of one of them."""
    if not isinstance(found, ModuleType):
        return ""
    classes = [name for name, value in vars(found).items() if isinstance(value, type) and name[0] != "_"]
    return f"; it has {', '.join(classes[:8])}" if classes else ""


def _top_level_modules() -> list[str]:
    return [*sys.stdlib_module_names, *(module.name for module in pkgutil.iter_modules())]
