"""Pydantic's errors in plain words: what was found, what is accepted, and which key was meant."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dist_trainer.config.near import did_you_mean, listed, near_names
from dist_trainer.config.redact import redact
from dist_trainer.config.schema import IMPORT_PATTERN, NAME_PATTERN, Config

BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
LIMITS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
NAME_WORDS = "up to 64 letters, digits, dots, dashes and underscores"
PATTERN_WORDS = {IMPORT_PATTERN: "an import path such as torch.nn.Linear", NAME_PATTERN: NAME_WORDS}
Path = tuple[str, ...]


class Finding(NamedTuple):
    """One thing wrong: its key, a message that continues the sentence, and the other keys it rests on."""

    path: Path
    message: str
    others: tuple[Path, ...] = ()
    meant: tuple[Path, ...] = ()  # what an unknown key was probably meant to be


def findings(error: ValidationError, data: Any) -> list[Finding]:
    """What `error` says about `data`, one for each key: the branches of a union are one finding."""
    found: dict[Path, Finding] = {}
    for details in error.errors(include_url=False):
        finding = _finding(details, data)
        found.setdefault(finding.path, finding)
    return list(found.values())


def _finding(details: ErrorDetails, data: Any) -> Finding:
    path = _path_in(data, details)
    kind, context = details["type"], details.get("ctx", {})
    if kind == "conflict":
        inside = path[: len(path) - len(context["key"].split("."))]
        others = tuple((*inside, *other.split(".")) for other in context["others"])
        return Finding(path, context["message"], others)
    if kind in ("extra_forbidden", "invalid_key"):
        message, meant = _unknown_key(path)
        return Finding(path, message, meant=tuple(meant))
    if kind == "missing" and get_origin(_bare(annotation_at(path[:-1]))) is tuple:  # pydantic names the item
        path, kind = path[:-1], "too_short"
    annotation = annotation_at(path)
    if kind == "missing":
        return Finding(path, f"is missing; it must be {accepted(annotation)}")
    return Finding(path, _wrong_value(kind, context, details["input"], annotation))


def _path_in(data: Any, details: ErrorDetails) -> Path:
    """The error's place without what pydantic adds for the branches of a union and the keys of a dict."""
    path: list[str] = []
    for part in details["loc"]:
        known = part in (
            data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        )
        if not known and details["type"] not in ("missing", "conflict"):  # these are about what is not there
            break
        data = data[part] if known else None
        path.append(str(part))
    return tuple(path)


def _unknown_key(path: Path) -> tuple[str, list[Path]]:
    """The message, and the keys that were probably meant: their absence is no error of its own."""
    *inside, name = path
    known = list(fields_at(tuple(inside)))
    near = near_names(name, known)
    if near:
        keys = [".".join((*inside, other)) for other in near]
        return f"is not a known key; did you mean {listed(keys)}?", [tuple(key.split(".")) for key in keys]
    elsewhere = [key for key in known_keys() if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"is not a known key; did you mean {listed(elsewhere)}?", []
    return f"is not a known key; accepted: {', '.join(known)}", []


def _wrong_value(kind: str, context: dict[str, Any], value: Any, annotation: Any) -> str:
    got = f"got {shown(value)}"
    if kind in BOUNDS:
        return f"must be {BOUNDS[kind]} {context[LIMITS[kind]]:g}, {got}"
    if kind == "string_pattern_mismatch" and _is_section(annotation):  # the key of metrics, not its value
        return f"must have a name of {NAME_WORDS}"
    words = accepted(annotation)
    if isinstance(value, str):
        return f"must be {words}, {got}{did_you_mean(value, _choices(annotation))}"
    quotes = "; put it in quotes" if "text" in words and isinstance(value, (int, float)) else ""
    return f"must be {words}, {got}{quotes}"


def shown(value: Any) -> str:
    """A value as a user wrote it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value))}" if value else "an empty section"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = redact(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def accepted(annotation: Any) -> str:
    """What a knob of this type takes."""
    return listed(dict.fromkeys(_accepted(annotation)))


def _accepted(annotation: Any) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        patterns = [words for pattern, words in PATTERN_WORDS.items() if repr(pattern) in str(arguments[1:])]
        yield from patterns or _accepted(arguments[0])
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _accepted(argument)
    elif origin is Literal:
        yield from arguments
    elif origin is tuple:
        yield f"a list of {len(arguments)} whole numbers"
    elif _is_section(annotation):
        required = [name for name, field in annotation.model_fields.items() if field.is_required()]
        yield f"a section with {listed(required, 'and')}" if required else "a section of keys"
    else:
        yield _PLAIN_WORDS.get(origin or annotation, "another value")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


_PLAIN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a section of keys",
    list: "a list",
    type(None): "null",
}


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if isinstance(choice, str)]
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def annotation_at(path: Path) -> Any:
    """The type of the knob at `path`; None inside a target's arguments."""
    annotation: Any = Config
    for part in path:
        annotation = _bare(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if _is_section(annotation):
            field = annotation.model_fields.get(part)
            annotation = _field_type(field) if field is not None else None
        elif origin is dict:
            annotation = arguments[1]
        elif origin in (list, tuple):
            annotation = arguments[0]
        else:
            return None
    return annotation


def _field_type(field: Any) -> Any:
    """Pydantic moves the metadata of `Annotated` out of the annotation; the import pattern is needed here."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _bare(annotation: Any) -> Any:
    """The type without its metadata and without null."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [argument for argument in get_args(annotation) if argument is not type(None)]
        return kept[0] if len(kept) == 1 else annotation
    return annotation


def fields_at(path: Path) -> list[str]:
    """The known keys of the section at `path`."""
    section = _bare(annotation_at(path))
    return list(section.model_fields) if _is_section(section) else []


def is_required(path: Path) -> bool:
    """Whether the schema has a knob at `path` without a default."""
    section = _bare(annotation_at(path[:-1]))
    field = section.model_fields.get(path[-1]) if _is_section(section) else None
    return field is not None and bool(field.is_required())


def known_keys(path: Path = ()) -> Iterator[str]:
    """Every knob of the schema by its dotted key, sections too."""
    for name in fields_at(path):
        yield ".".join((*path, name))
        yield from known_keys((*path, name))
