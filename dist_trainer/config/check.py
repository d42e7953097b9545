"""Whether every target of a configuration exists and takes its arguments, found out by importing it.

This imports torch and the user's modules, so it runs in a child process:
`python -m dist_trainer.config.check` reads configurations on standard input, as a JSON list of their YAML, and
prints the problems of each as JSON.
"""

import inspect
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config.arguments import (
    WEIGHT_FILES,
    Targeted,
    is_used_itself,
    misfits,
    parameters_of,
    parts,
)
from dist_trainer.config.imports import import_target
from dist_trainer.config.references import resolve, unset
from dist_trainer.config.schema import Config, OptimizerConfig
from dist_trainer.config.yaml_rules import read_yaml, write_yaml
from dist_trainer.errors import ConfigError

# the length of the training, which the toolkit knows
FILLED_IN = frozenset({"T_max", "total_steps", "total_iters"})
Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Role:
    """What a section's object is for: what the toolkit supplies, and what the object has to be."""

    supplied: int = 0
    implied: frozenset[str] = frozenset()
    is_function: bool = False  # may be a function that the toolkit calls later
    refuses: Callable[[type], str | None] = lambda _: None  # why a class does not suit


def check_targets(config: Config) -> list[tuple[str, str]]:
    """What is wrong with the targets: (dotted key, message to follow it). Imports all of them, and torch."""
    found = list(unset(config.model_dump()))
    if found:
        return found  # no target could be asked with what is not there
    for key, target, role in _sections(config):
        found += _check(key, target, role)
    return [*found, *_missing_weights(config)]


def _missing_weights(config: Config) -> Pairs:
    weights = config.model.weights
    if weights and weights.endswith(WEIGHT_FILES) and not Path(str(resolve(weights))).is_file():
        yield "model.weights", f"must be a file that is there, got {weights}"


def check_in_child(config: Config) -> list[tuple[str, str]]:
    """`check_targets` in a process of its own. Raises ConfigError if a target's import ends that process."""
    return check_all_in_child([config])[0]


def check_all_in_child(configs: Sequence[Config]) -> list[list[tuple[str, str]]]:
    """What is wrong with each configuration, with one process for all: torch is imported once."""
    return import_in_child(configs).problems


@dataclass(frozen=True)
class Imported:
    """What a child found: for each configuration (dotted key, message) pairs, and the modules that came along.

    `modules` are (name, file) of those that are not installed: the code of the user's.
    """

    problems: list[list[tuple[str, str]]]
    modules: list[tuple[str, Path]]


def import_in_child(configs: Sequence[Config], folder: Path | None = None) -> Imported:
    """Import every target of the configurations in one process, in `folder` or here."""
    child = subprocess.run(
        [sys.executable, "-m", "dist_trainer.config.check"],
        input=json.dumps([write_yaml(config.model_dump()) for config in configs]),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if child.returncode:
        last = child.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"importing the targets ended the process with {child.returncode}: {last}")
    found = json.loads(child.stdout)
    problems = [[(key, message) for key, message in each] for each in found["problems"]]
    return Imported(problems, [(name, Path(file)) for name, file in found["modules"]])


def main() -> None:
    """The child's side. What user modules print on import goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    if sys.flags.safe_path:  # as in a job of ours: the user's modules are in the current folder all the same
        sys.path.insert(0, str(Path.cwd()))
    problems = [check_targets(_read(text)) for text in json.load(sys.stdin)]
    with os.fdopen(answer, "w") as stream:
        json.dump({"problems": problems, "modules": list(_own_modules())}, stream)


def _own_modules() -> Iterator[tuple[str, str]]:
    """Those that come neither with Python nor out of an environment's site-packages."""
    python = sysconfig.get_path("stdlib")
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "")
        installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(python)
        if path.is_absolute() and not installed and name not in ("__main__", "__mp_main__"):
            yield name, str(path)


def _read(text: str) -> Config:
    tree, _ = read_yaml(text, "standard input")
    assert tree is not None, "the parent writes valid YAML"
    return Config.model_validate(tree.plain())


def _sections(config: Config) -> Iterator[tuple[str, Targeted, Role]]:
    yield "model", config.model, Role(refuses=_not_a("torch.nn.Module"))
    for name in ("train", "val", "test"):
        target = getattr(config.data, name)
        if target is not None:
            yield f"data.{name}", target, Role(refuses=_no_random_access)
    if config.data.collate is not None:
        yield "data.collate", config.data.collate, Role(is_function=True)
    yield "task", config.task, Role(implied=frozenset({"loss"}), refuses=_without_methods("forward", "loss"))
    if config.loss is not None:
        yield "loss", config.loss, Role(is_function=True)
    for name, metric in config.metrics.items():
        yield f"metrics.{name}", metric, Role()
    yield "optimizer", config.optimizer, Role(1, refuses=_not_a("torch.optim.Optimizer"))
    if config.scheduler is not None and config.scheduler.target is not None:
        refuses = _not_a("torch.optim.lr_scheduler.LRScheduler")
        yield "scheduler", config.scheduler, Role(1, FILLED_IN, refuses=refuses)
    for index, hook in enumerate(config.hooks):
        yield f"hooks.{index}", hook, Role(refuses=_not_a("dist_trainer.training.hooks.Hook"))


def _check(key: str, target: Targeted, role: Role) -> Pairs:
    path, arguments = parts(target)
    yield from _check_nested(key, arguments)
    try:
        function = import_target(path)
    except ConfigError as error:
        yield f"{key}.target", f"cannot be imported: {error}"
        return
    reason = role.refuses(function) if isinstance(function, type) else None
    if reason:
        yield f"{key}.target", f"is {path}, {reason}"
        return
    found = list(_misfits_at(key, path, function, arguments, role))
    if isinstance(target, OptimizerConfig):
        found += _check_optimizer(key, target, function, bool(found))
    yield from found


def _misfits_at(
    key: str, path: str, function: Callable[..., Any], arguments: dict[str, Any], role: Role
) -> Pairs:
    parameters = parameters_of(function)
    if parameters is None:
        return
    complete = not (role.is_function and is_used_itself(function, set(arguments)))
    for name, message in misfits(
        path, parameters, arguments, supplied=role.supplied, implied=role.implied, complete=complete
    ):
        yield ".".join(filter(None, (key, name))), message


def _check_nested(key: str, value: Any) -> Pairs:
    """Targets among the arguments, at any depth; a function there may be one to use itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        inner = f"{key}.{name}"
        if isinstance(item, dict) and isinstance(item.get("target"), str):
            yield from _check(inner, item, Role(is_function=True))
        else:
            yield from _check_nested(inner, item)


def _check_optimizer(key: str, target: OptimizerConfig, function: Callable[..., Any], wrong: bool) -> Pairs:
    """The groups' options, and torch's own opinion on the values, asked with a parameter made up for it."""
    parameters = parameters_of(function) or {}
    for number, group in enumerate(target.groups):
        for name, message in misfits(target.target, parameters, group.overrides, supplied=1, complete=False):
            yield f"{key}.groups.{number}.{name}", message
    nested = any(isinstance(value, dict) for value in target.arguments.values())
    if wrong or nested or not isinstance(function, type) or not target.target.startswith("torch.optim."):
        return
    from torch import nn, optim, zeros

    # the decorator of this method imports torch's compiler, which takes seconds
    plain = {"add_param_group": inspect.unwrap(optim.Optimizer.add_param_group)}
    try:
        type("Trial", (function,), plain)([nn.Parameter(zeros(2, 2))], **resolve(target.arguments))
    except (ValueError, TypeError, RuntimeError) as error:
        yield key, f"is refused by {target.target}: {error}"


def _not_a(wanted: str) -> Callable[[type], str | None]:
    def refuses(found: type) -> str | None:
        base = import_target(wanted)
        assert isinstance(base, type)
        return None if issubclass(found, base) else f"which is not a {wanted}"

    return refuses


def _without_methods(*names: str) -> Callable[[type], str | None]:
    def refuses(found: type) -> str | None:
        lacking = [name for name in names if not hasattr(found, name)]
        return f"which has no method {' and no method '.join(lacking)}" if lacking else None

    return refuses


def _no_random_access(found: type) -> str | None:
    from torch.utils.data import IterableDataset

    if issubclass(found, IterableDataset):
        return (
            "an IterableDataset: without access to any sample by its number the order of samples and a resume"
            " cannot be exact; use a map-style data set (__len__ and __getitem__), or write the samples to"
            " one file with `dist-trainer data pack`"
        )
    if not any(hasattr(found, name) for name in ("__getitem__", "__getitems__", "batch")):
        return "which is not a data set: it has no __getitem__"
    return None


if __name__ == "__main__":
    main()
