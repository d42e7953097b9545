"""`${env:NAME}` in a value: what a variable of the environment holds, put in where the value is used.

What is written (config.yaml, MLflow's parameters, a batch script, messages) keeps the reference, so a secret is
written nowhere. Workers and the MLflow process inherit the variables of the command.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from dist_trainer.errors import ConfigError

REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
UNSET = "refers to the environment variable {}, which is not set; export it before the command"


def resolve(value: Any) -> Any:
    """`value`, a text or nested lists and sections of them, with its references put in. Raises ConfigError."""
    if isinstance(value, str):
        return REFERENCE.sub(_variable, value)
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    return [resolve(item) for item in value] if isinstance(value, list) else value


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise ConfigError(f"{match[0]} {UNSET.format(match[1])}")
    return value


def unset(tree: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, message) for each reference to a variable that is not there."""
    for key, text in texts(tree):
        for name in dict.fromkeys(REFERENCE.findall(text)):
            if name not in os.environ:
                yield key, UNSET.format(name)


def texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested lists and sections, with its dotted key."""
    if isinstance(tree, str):
        yield key, tree
    dot = f"{key}." if key else ""
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield from texts(item, f"{dot}{name}")
    elif isinstance(tree, list | tuple):
        for number, item in enumerate(tree):
            yield from texts(item, f"{dot}{number}")
