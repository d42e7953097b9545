"""A run's configuration as MLflow takes it: flat parameters, names it accepts, no secrets."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dist_trainer.config.redact import redact_value

_LONGEST_VALUE = 6000
_LONGEST_NAME = 250
_CUT = " ... cut; whole in config.yaml"


def parameters(config_yaml: str) -> dict[str, str]:
    """Every value of the configuration by its dotted key, as it is written there, redacted.

    A list of plain values is one parameter, any other list has one per item (`optimizer.groups.0.lr`).
    What is longer than MLflow takes is cut, and says so.
    """
    found = {}
    for key, value in _flat(_compose(config_yaml), ""):
        cut = value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - len(_CUT)] + _CUT
        found[mlflow_name(key)] = cut
    return found


def redact_yaml(config_yaml: str) -> str:
    """The same YAML text with its secrets blotted out and nothing else touched."""
    blots: dict[tuple[int, int], str] = {}
    for key, node in _scalars(_compose(config_yaml), ""):
        shown = redact_value(key, node.value)
        if shown != node.value:
            blots[node.start_mark.index, node.end_mark.index] = json.dumps(shown)
    for (start, end), shown in sorted(blots.items(), reverse=True):
        line_end = "\n" if config_yaml[start:end].endswith("\n") else ""  # a block scalar takes its line's
        config_yaml = config_yaml[:start] + shown + line_end + config_yaml[end:]
    return config_yaml


def mlflow_name(key: str) -> str:
    """`key` where MLflow takes it as a name; else the nearest it takes, made unique by a digest."""
    clean = re.sub(r"[^/\w.\- :]", "_", key)
    if posixpath.normpath(clean) != clean or clean.startswith((".", "/")):
        clean = clean.replace("/", "_").strip("._") or "_"
    if clean == key and len(key) <= _LONGEST_NAME:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{clean[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


def _compose(config_yaml: str) -> Node | None:
    # nodes and not values: their text is what the user wrote, by whichever rules it is read elsewhere
    node: Node | None = yaml.compose(config_yaml, Loader=yaml.SafeLoader)
    return node


def _flat(node: Node | None, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ScalarNode):
        yield key, redact_value(key, node.value)
    elif isinstance(node, SequenceNode) and all(isinstance(item, ScalarNode) for item in node.value):
        yield key, "[" + ", ".join(redact_value(key, item.value) for item in node.value) + "]"
    elif isinstance(node, MappingNode) and not node.value:
        yield key, "{}"
    else:
        for name, child in _children(node, key):
            yield from _flat(child, name)


def _scalars(node: Node | None, key: str) -> Iterator[tuple[str, ScalarNode]]:
    if isinstance(node, ScalarNode):
        yield key, node
    plain_list = isinstance(node, SequenceNode) and all(isinstance(item, ScalarNode) for item in node.value)
    for name, child in _children(node, key):
        yield from _scalars(child, key if plain_list else name)


def _children(node: Node | None, key: str) -> Iterator[tuple[str, Node]]:
    dot = f"{key}." if key else ""
    if isinstance(node, MappingNode):
        for name, child in node.value:
            yield f"{dot}{name.value}", child
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            yield f"{dot}{index}", child
