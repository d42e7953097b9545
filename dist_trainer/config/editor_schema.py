"""A JSON schema of the configuration for editors, with the comments of schema.py as descriptions."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dist_trainer.config import schema

_COMMENT = re.compile(r"  # (.+)")


def json_schema() -> dict[str, Any]:
    """The schema as a dict, ready for json.dump."""
    document = schema.Config.model_json_schema()
    comments = _comments()
    for name, section in [("Config", document), *document.get("$defs", {}).items()]:
        for key, knob in section.get("properties", {}).items():
            described = next(
                (comments[owner, key] for owner in _owners(name) if (owner, key) in comments), None
            )
            if described is not None:
                knob["description"] = described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "title": "dist_trainer configuration",
    }


def _owners(name: str) -> list[str]:
    """The class and those it inherits knobs from."""
    return [owner.__name__ for owner in getattr(schema, name).__mro__]


def _comments() -> dict[tuple[str, str], str]:
    """(class, knob) -> the comment behind the knob."""
    source = inspect.getsource(schema)
    lines, found = source.splitlines(), {}
    for owner in [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]:
        for knob in owner.body:
            if isinstance(knob, ast.AnnAssign) and isinstance(knob.target, ast.Name):
                written = "\n".join(lines[knob.lineno - 1 : knob.end_lineno])
                if match := _COMMENT.search(written):
                    found[owner.name, knob.target.id] = match[1]
    return found


@dataclass(frozen=True)
class Key:
    """A key that can be given a value by itself: dotted, with its default as it is typed, and what it means."""

    name: str
    default: str
    meaning: str


def settable_keys() -> Iterator[Key]:
    """All of them: no section, and nothing within a list. What a target takes is in no schema."""
    document = json_schema()
    yield from _settable("", document, document)


def dotted_keys() -> Iterator[str]:
    """Every key of the schema, sections and what is in lists too."""
    document = json_schema()
    yield from (name for name, _ in _keys_of("", document, document))


def sections_of(knob: dict[str, Any], document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that a knob may hold; a target's free arguments are not listed."""
    for choice in [knob, knob.get("items", {}), *knob.get("anyOf", [])]:
        if "$ref" in choice:
            yield document["$defs"][choice["$ref"].rpartition("/")[2]]


def _keys_of(
    prefix: str, section: dict[str, Any], document: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, knob in section.get("properties", {}).items():
        yield f"{prefix}{name}", knob
        for inner in sections_of(knob, document):
            yield from _keys_of(f"{prefix}{name}.", inner, document)


def _settable(prefix: str, section: dict[str, Any], document: dict[str, Any]) -> Iterator[Key]:
    for name, knob in section.get("properties", {}).items():
        inner = [] if "items" in knob else list(sections_of(knob, document))
        for each in inner:
            yield from _settable(f"{prefix}{name}.", each, document)
        if not inner:
            default = knob.get("default")
            typed = "" if isinstance(default, list | dict) else json.dumps(default).strip('"')
            yield Key(f"{prefix}{name}", typed, knob.get("description", ""))
