"""Writes the table of every key in docs/configuration.md from the schema: `python -m tests.reference`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_trainer.config.editor_schema import json_schema, sections_of

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
PART = re.compile(
    r"(?<=<!-- reference: written by `make reference` -->\n).*(?=<!-- end of reference -->)", re.S
)


def reference() -> str:
    """A table for each section."""
    document = json_schema()
    tables = [("", document)]
    for name, knob in document["properties"].items():
        tables += [(name, each) for each in sections_of(knob, document) if each["title"] != "Target"]
    return "\n".join(_table(name, section, document) for name, section in tables)


def _table(name: str, section: dict[str, Any], document: dict[str, Any]) -> str:
    title = f"### `{name}`" if name else "### Top level"
    lines = [title, "", section["description"].replace("\n", " "), ""]
    lines += ["| key | accepts | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(f"{name}." if name else "", section, document), ""])


def _rows(prefix: str, section: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    required = section.get("required", [])
    for key, knob in section.get("properties", {}).items():
        default = "required" if key in required else f"`{_yaml(knob.get('default'))}`"
        inner = [section for section in sections_of(knob, document) if section["title"] != "Target"]
        meaning = knob.get("description", "") or (inner[0].get("description", "") if inner else "")
        shown = "" if inner and isinstance(knob.get("default"), dict) else default
        yield f"| `{prefix}{key}` | {_type(knob)} | {shown} | {_cell(meaning)} |"
        if prefix:
            for nested in inner:
                yield from _rows(f"{prefix}{key}.", nested, document)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return str(value)


def _type(knob: dict[str, Any]) -> str:
    if "anyOf" in knob:
        return " or ".join(_type(choice) for choice in knob["anyOf"])
    if "$ref" in knob:
        return "target" if knob["$ref"].endswith("Target") else "section"
    if "enum" in knob or "const" in knob:
        return ", ".join(f"`{value}`" for value in knob.get("enum", [knob.get("const")]))
    kind = {"integer": "whole number", "boolean": "`true`, `false`", "object": "keys and values"}
    kind |= {"string": "text", "null": "`null`", "array": "list"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {knob[name]:g}" for name, sign in limits.items() if abs(knob.get(name, 1e99)) < 1e9]
    found: str = kind.get(knob.get("type", ""), knob.get("type", "anything"))
    return " ".join([found, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    PAGE.write_text(PART.sub(lambda _: reference(), PAGE.read_text()))
