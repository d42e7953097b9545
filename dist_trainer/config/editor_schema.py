"""A JSON schema of the configuration for editors, with the comments of schema.py as descriptions."""

import ast
import inspect
import re
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
