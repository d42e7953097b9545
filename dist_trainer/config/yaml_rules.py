"""YAML as this toolkit reads and writes it: the 1.2 core rules, every value with the line it stands on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_ALIASES = 100
MAX_VALUES = 100_000  # after aliases are followed: a hundred of them can nest to more than any memory
TAG = "tag:yaml.org,2002:"
CORE_RULES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class Problem(NamedTuple):
    """One thing wrong: the key by its parts, and a message that continues the sentence started by the key."""

    where: str
    path: tuple[str, ...]
    message: str


@dataclass
class Located:
    """A value and where it was written; dicts and lists hold Located values."""

    where: str
    value: Any

    def plain(self) -> Any:
        """The value alone."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def find(self, path: tuple[str, ...]) -> str:
        """Where `path` was written, or the nearest thing around it."""
        if not path:
            return self.where
        for key, item in self._items():
            if str(key) == path[0]:
                return item.find(path[1:])
        return self.where

    def _items(self) -> Iterator[tuple[Any, "Located"]]:
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)


class CoreLoader(yaml.SafeLoader):
    """SafeLoader with the resolver of YAML 1.2, and bounds on depth and aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.aliases = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse what is too deep before Python's own stack does."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise ComposerError(None, None, f"more than {MAX_ALIASES} aliases", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class CoreDumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal values are written out each time."""
        return True

    def represent_text(self, text: str) -> Node:
        """YAML 1.1 folds the line breaks of Unicode when it reads them back, except as escapes."""
        escaped = any(line_break in text for line_break in "\x85\u2028\u2029")
        return self.represent_scalar(TAG + "str", text, style='"' if escaped else None)


CoreDumper.add_representer(str, CoreDumper.represent_text)
CoreLoader.yaml_implicit_resolvers = {}  # else those of YAML 1.1 would be added to
for _name, _pattern, _first in CORE_RULES:
    for _class in (CoreLoader, CoreDumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def write_yaml(data: Any) -> str:
    """`data` as YAML text that `read_yaml` reads back equal."""
    return str(yaml.dump(data, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=1_000_000))


def write_yaml_line(key: str, value: Any) -> str:
    """`key: value` on one line, as it is pasted into a file; the value may be a whole section."""
    one = yaml.dump(
        {key: value},
        Dumper=CoreDumper,
        sort_keys=False,
        allow_unicode=True,
        width=1_000_000,
        default_flow_style=True,
    )
    return str(one).strip()[1:-1]


def read_yaml(text: str, source: str, *, lines: bool = True) -> tuple[Located | None, list[Problem]]:
    """The one document in `text`; None with a problem where it cannot be read at all.

    Duplicate keys, unknown tags and the like are problems too, and the rest is still read.
    """
    reader = _Reader(source, lines)
    if len(text) > MAX_BYTES:
        return None, [Problem(source, (), f"is larger than {MAX_BYTES // 1_000_000} MB")]
    try:
        node = CoreLoader(text).get_single_node()
        if node is None:
            return Located(source, None), []
        return reader.read(node, (), reader.at(node)), reader.problems
    except yaml.YAMLError as error:
        return None, [*reader.problems, _syntax_problem(error, reader)]


def _syntax_problem(error: yaml.YAMLError, reader: "_Reader") -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = [
        getattr(error, "context", None),
        getattr(error, "problem", None) or getattr(error, "reason", None),
    ]
    what = ", ".join(word for word in words if word) or str(error)
    where = reader.line(mark.line) if mark is not None else reader.source
    column = f" (column {mark.column + 1})" if mark is not None else ""
    return Problem(where, (), f"cannot be read as YAML: {what}{column}")


@dataclass
class _Reader:
    source: str
    lines: bool
    problems: list[Problem] = field(default_factory=list)
    values: int = 0

    def line(self, number: int) -> str:
        return f"{self.source}:{number + 1}" if self.lines else self.source

    def at(self, node: Node) -> str:
        return self.line(node.start_mark.line)

    def complain(self, node: Node, path: tuple[str, ...], message: str) -> None:
        self.problems.append(Problem(self.at(node), path, message))

    def read(self, node: Node, path: tuple[str, ...], where: str) -> Located:
        self.values += 1
        if len(path) > MAX_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", node.start_mark)
        if self.values > MAX_VALUES:
            raise ComposerError(None, None, f"more than {MAX_VALUES} values", node.start_mark)
        if isinstance(node, MappingNode) and node.tag == TAG + "map":
            return Located(where, self._mapping(node, path))
        if isinstance(node, SequenceNode) and node.tag == TAG + "seq":
            items = [self.read(item, (*path, str(n)), self.at(item)) for n, item in enumerate(node.value)]
            return Located(where, items)
        if isinstance(node, ScalarNode) and node.tag.removeprefix(TAG) in (
            "str",
            "null",
            "bool",
            "int",
            "float",
        ):
            return Located(where, self._scalar(node, path))
        tag = node.tag.replace(TAG, "!!")
        self.complain(node, path, f"has the unknown tag {tag}; only plain YAML values are accepted")
        return Located(where, None)

    def _mapping(self, node: MappingNode, path: tuple[str, ...]) -> dict[Any, Located]:
        items: dict[Any, Located] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in items:
                self.complain(key_node, (*path, str(key)), f"is given twice, first at {items[key].where}")
                continue
            items[key] = self.read(value_node, (*path, str(key)), self.at(key_node))
        return items

    def _key(self, node: Node, path: tuple[str, ...]) -> str | int | None:
        if isinstance(node, ScalarNode) and node.value == "<<" and node.style is None:
            self.complain(
                node, (*path, "<<"), "is not part of YAML 1.2; put the shared keys into a file of their own"
            )
            return None
        key = self._scalar(node, path) if isinstance(node, ScalarNode) else None
        if isinstance(key, (str, int)) and not isinstance(key, bool):
            return key
        shown = (
            node.value
            if isinstance(node, ScalarNode)
            else f"a {type(node).__name__.removesuffix('Node').lower()}"
        )
        self.complain(
            node,
            (*path, str(shown)),
            "is not a key; keys are text, in quotes where YAML reads something else",
        )
        return None

    def _scalar(self, node: ScalarNode, path: tuple[str, ...]) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
        try:
            return _value(kind, _joined(text))
        except UnicodeError:
            self.complain(node, path, f"holds half of a character: {text[:40]!a}")
            return None
        except (ValueError, KeyError):
            self.complain(node, path, f"cannot be read as {kind}: {text[:40]!r}")
            return None


def _joined(text: str) -> str:
    """JSON writes a character beyond 16 bits as two halves, which PyYAML leaves apart. UnicodeError: one is alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def _value(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    if kind == "int":
        return int(text[2:], 8) if text.startswith("0o") else int(text, 16 if text.startswith("0x") else 10)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
