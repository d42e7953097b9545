"""How one layer of configuration goes over another, and how `key=value` arguments become a layer."""

from collections.abc import Sequence
from typing import Any

from dist_trainer.config.yaml_rules import MAX_DEPTH, Located, Problem, read_yaml

COMMAND_LINE = "command line"


def merge(base: Located, layer: Located, problems: list[Problem], path: tuple[str, ...] = ()) -> Located:
    """`layer` over `base`: sections deep, everything else replaced.

    A section whose `target` changes is replaced whole: the old one's arguments mean nothing to the new one.
    On the command line a number is a place in a list: `optimizer.groups.0.lr_scale=2`.
    """
    if not isinstance(layer.value, dict):
        return layer
    if isinstance(base.value, list) and layer.value and layer.where == COMMAND_LINE:
        return _merge_items(base, layer, problems, path)
    if not isinstance(base.value, dict) or _changes_target(base.value, layer.value):
        return layer
    merged = dict(base.value)
    for key, value in layer.value.items():
        merged[key] = merge(merged[key], value, problems, (*path, str(key))) if key in merged else value
    return Located(base.where, merged)


def _merge_items(base: Located, layer: Located, problems: list[Problem], path: tuple[str, ...]) -> Located:
    items = list(base.value)
    for key, value in layer.value.items():
        if not str(key).isdigit() or int(key) >= len(items):
            message = f"names no item of the list {'.'.join(path)}, which has {len(items)}, counted from 0"
            problems.append(Problem(COMMAND_LINE, (*path, str(key)), message))
        else:
            items[int(key)] = merge(items[int(key)], value, problems, (*path, str(key)))
    return Located(base.where, items)


def _changes_target(base: dict[Any, Located], layer: dict[Any, Located]) -> bool:
    return "target" in base and "target" in layer and base["target"].value != layer["target"].value


def override_layer(overrides: Sequence[str], problems: list[Problem]) -> Located:
    """All `key=value` arguments as one layer; of two for the same key the later one counts.

    One layer, so that `model.hidden=3 model.target=a.B` means the same in either order.
    """
    layer = Located(COMMAND_LINE, {})
    for text in overrides:
        key, equals, written = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > MAX_DEPTH:
            problems.append(Problem(COMMAND_LINE, (), f"an override is written key=value, got {text!r}"))
            continue
        value, found = read_yaml(written, COMMAND_LINE, lines=False)
        problems += [problem._replace(path=(*path, *problem.path)) for problem in found]
        if value is not None:
            _set(layer, path, value)
    return layer


def _set(layer: Located, path: tuple[str, ...], value: Located) -> None:
    first, *rest = path
    if not isinstance(layer.value, dict):
        layer.value = {}
    if rest:
        _set(layer.value.setdefault(first, Located(COMMAND_LINE, {})), tuple(rest), value)
    else:
        layer.value[first] = value
