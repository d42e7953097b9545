"""JSON that a process reads and another wrote, or a disk error, or somebody's hand: checked before it is believed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")
_MOMENTS = ("time", "created", "since")  # what a record calls unix seconds
_END_OF_TIME = 1e11
_NO_COUNT = 1 << 63


def read_record(kind: type[T], content: bytes) -> T:
    """`content` as a dataclass, each field of the type that it says; ValueError, in one line, where it is not.

    Fields that the class does not know are left out: a newer version may have written them.
    """
    return check_record(kind, content, is_json=True)


def check_record(kind: type[T], content: Any, *, is_json: bool = False) -> T:
    """The same of what was parsed already."""
    adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
    return _checked(lambda: adapter.validate_json(content) if is_json else adapter.validate_python(content))


def is_record(kind: type[Any], content: Any) -> bool:
    """Whether what was parsed is one as it stands: its fields stay as they are, so "5" is no number here."""
    try:
        text = json.dumps(content)  # a dict is no dataclass to the strict, but JSON may be one
        adapter = _adapter(cast(Any, kind))
        _checked(lambda: adapter.validate_json(text, strict=True))
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _checked(read: Callable[[], T]) -> T:
    """What `read` gives, if all its numbers can be what they say."""
    try:
        found = read()
    except ValueError as error:  # pydantic's own is one, of many lines
        raise ValueError(_first(error)) from error
    for name in _MOMENTS:
        if not is_moment(moment := getattr(found, name, 0.0)):
            raise ValueError(f"{name}: {moment} is no time")
    if not all(map(is_count, _whole_numbers(found))):
        raise ValueError("a whole number in it has more than 63 bits")
    return found


def is_moment(value: Any) -> bool:
    """Whether these can be unix seconds: no number that a clock could not show."""
    return type(value) in (int, float) and 0 <= value < _END_OF_TIME


def is_count(value: Any) -> bool:
    """Whether this is a whole number that a file's offset, a float and a database can be."""
    return type(value) is int and -_NO_COUNT <= value < _NO_COUNT


def _whole_numbers(value: Any) -> Iterator[int]:
    """Those anywhere in a record."""
    if type(value) is int:
        yield value
    elif isinstance(value, list | tuple | dict) or is_dataclass(value):
        inside = (
            vars(value).values()
            if is_dataclass(value)
            else value.values()
            if isinstance(value, dict)
            else value
        )
        for each in inside:
            yield from _whole_numbers(each)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first(error: Any) -> str:
    """What is wrong first, and where."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg']}" if place else str(found["msg"])
