"""Small turns of phrase: what a file holds on one safe line, numbers in a row, paths as they are typed."""

import shlex
from pathlib import Path


def one_line(text: str, limit: int = 300, *, keep_indent: bool = False) -> str:
    """Without line breaks and without what would steer a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text))
    plain = plain.rstrip() if keep_indent else " ".join(plain.split())
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."


def typed(path: Path | str) -> str:
    """A path as it is given to a command here: short where it is below the folder we are in."""
    path, here = Path(path), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def count(number: int, one: str) -> str:
    """1 step, 2 steps."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
