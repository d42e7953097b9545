"""Changes what a reader is given: text, JSON documents, headers. Everything is drawn from one seeded generator."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

NASTY_TEXTS = [
    *(
        "\0",
        "a\0b",
        "../../x",
        "/etc/passwd",
        "\u202egnp.exe",
        "%2e%2e/",
        "-rf",
        "x" * 5000,
        "\ud7ff",
        "\U0001f600",
    ),
    *(
        "{{1}}",
        "${HOME}",
        "${env:NO_SUCH_VARIABLE}",
        "$(touch canary)",
        "!!python/object:os.system",
        "nan",
        "1e999",
    ),
]
NASTY: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**60,
        2**63,
        2**64,
        10**400,
        -(2**63),
        0.0,
        -0.5,
        1.5,
        1e308,
        1e-320,
    ),
    *([], {}, [[]], [1, 2, 3], {"a": 1}, {"target": 3}, {"$": "dict"}, "", "0", "step", *NASTY_TEXTS),
]
YAML_PIECES = [
    *(
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/name:os.system",
        "!!binary aGk=",
        "!x y",
        "&a [*a]",
    ),
    *(
        "<<: *a",
        "*nobody",
        "? [a, b]\n: c",
        "\t",
        "\r",
        "\x00",
        "\x85",
        "\ufeff",
        "\U0001f600",
        "'",
        '"',
        "|",
        ">",
        "%",
    ),
    *(
        "---\n",
        "...\n",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "9" * 400,
        "0x" + "f" * 300,
        "1e400",
        ".inf",
        ".nan",
        "@",
        "`",
    ),
    "[" * 3000,
    "{a: " * 2000,
    "\n".join([f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else '1, 1, 1'}]" for n in range(12)]),
]


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in nested lists and dicts."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from places(value)


def change_tree(tree: Any, draw: random.Random) -> Any:
    """A copy with one to three values replaced, left out, renamed, repeated or put somewhere else."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 3)):
        found = list(places(tree))
        if not found:
            return draw.choice(NASTY)
        container, key = draw.choice(found)
        draw.choice(_CHANGES)(container, key, tree, draw)
    return tree


def _replace(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    container[key] = copy.deepcopy(draw.choice(NASTY))


def _leave_out(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    del container[key]


def _rename(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    if isinstance(container, dict):
        container[draw.choice([*NASTY_TEXTS, f"{key}_", str(key)[:-1]])] = container.pop(key)


def _move(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    other, place = draw.choice(list(places(tree)))
    container[key] = copy.deepcopy(other[place])


def _shift(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    if type(container[key]) is int:
        container[key] += draw.choice([-1, 1, -8, 8, 2**32, -(2**32)])
    elif isinstance(container[key], str):
        container[key] += draw.choice(["x", "\0", " ", "."])


def _nest(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 30, 150])):
        container[key] = [container[key]]


def _multiply(container: Any, key: Any, tree: Any, draw: random.Random) -> None:
    if isinstance(container[key], list) and len(repr(container[key])) < 1000:
        # copies, lest the next change be made in each of them
        container[key] = [copy.deepcopy(each) for each in container[key] * draw.choice([2, 1000])]


_CHANGES: list[Callable[[Any, Any, Any, random.Random], None]] = [
    *(_replace, _replace, _replace, _leave_out, _rename, _move, _shift, _nest, _multiply)
]


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """Some bits turned, a part cut out, repeated, moved, zeroed, or something put in."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        to = min(len(changed), at + draw.choice([1, 1, 2, 8, 100]))
        match draw.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at:to]
            case 2:
                changed[at:at] = changed[at:to] * draw.choice([1, 50])
            case 3:
                changed[at:to] = bytes(to - at)
            case 4:
                changed[at:at] = draw.randbytes(draw.choice([1, 4, 30]))
            case _:
                changed[at:at] = draw.choice(
                    [b'"', b"{", b"]", b",", b"\\", b"\xff\xfe", b"1e999", b"[" * 5000]
                )
    return bytes(changed)


def change_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON document changed as a tree, mostly, or as bytes."""
    if draw.random() < 0.25:
        return change_bytes(content, draw)
    return json.dumps(change_tree(json.loads(content), draw)).encode()


def change_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of a file of JSON lines changed, or the file as bytes."""
    lines = content.splitlines(keepends=True)
    if not lines or draw.random() < 0.25:
        return change_bytes(content, draw)
    number = draw.randrange(len(lines))
    lines[number] = change_json(lines[number], draw) + b"\n"
    return b"".join(lines)


def change_yaml(text: str, draw: random.Random) -> str:
    """Text of a configuration: pieces put in, lines repeated, moved, indented otherwise or left out."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        match draw.randrange(7):
            case 0:
                column = draw.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:column] + draw.choice(YAML_PIECES) + lines[at][column:]
            case 1:
                lines[at] = lines[at].partition(":")[0] + ": " + draw.choice(YAML_PIECES)
            case 2:
                lines.insert(draw.randrange(len(lines)), lines[at])
            case 3:
                lines[at] = " " * draw.choice([1, 2, 3, 9]) + lines[at]
            case 4:
                lines[at] = lines[at].lstrip()
            case 5 if len(lines) > 1:
                del lines[at]
            case _:
                column = draw.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:column] + draw.choice(NASTY_TEXTS) + lines[at][column:]
    return "\n".join(lines) + "\n"
