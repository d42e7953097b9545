"""Files that survive a crash: replaced as a whole, created by exactly one process, appended line by line."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def plain_number(value: float) -> float | str:
    """`value` for JSON, which has no NaN and no infinity: those as the strings that float() reads back."""
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def write_json(path: Path, content: Any) -> None:
    """Replace a file by `content`, all at once and synced."""
    replace_file(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file all at once; when this returns it survives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _write_synced(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line, synced; a torn line before it is closed first."""
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(line, default=str).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def whole_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON lines of `content`; one torn by a crash is left out."""
    for line in content.split(b"\n"):
        with suppress(ValueError):
            yield json.loads(line)


def create_exclusively(path: Path, content: Mapping[str, Any]) -> bool:
    """Create a JSON file, synced; False where it exists: of all who try, exactly one gets True."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    _write_synced(descriptor, json.dumps(content, default=str).encode())
    sync_folder(path.parent)
    return True


def _write_synced(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
