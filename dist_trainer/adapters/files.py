"""Files that survive a crash: replaced as a whole, created by exactly one process, appended line by line.

All of them are for their owner alone (0600, folders 0700) whatever the umask is, and none is written through a
symbolic link: in a run folder that came from somebody else it may lead to any file of ours.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dist_trainer.adapters.local_folder import LocalFolder, sync_folder
from dist_trainer.errors import DataError, StorageError, UsageError


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is ours alone; UsageError where a symbolic link stands in its place."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(linked(path)) from error
        raise


def open_plain(path: Path) -> BinaryIO:
    """A plain file to read. DataError where a link, a pipe or a device is: what it leads to is nobody's business."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(path)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path.name} is no plain file")
    return os.fdopen(descriptor, "rb")


def refuse_link(path: Path) -> None:
    """DataError where this is a symbolic link: what it leads to is not of the run."""
    if path.is_symlink():
        raise DataError(f"{path.name} is a symbolic link, and none is followed there")


def open_log(path: Path) -> BinaryIO:
    """A file of ours to append to, unbuffered; its folder is made."""
    make_private_folder(path.parent)
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0)


def new_private_file(path: Path) -> Path:
    """Put an empty file of ours at `path`, in place of what is there, for a library to write into."""
    path.unlink(missing_ok=True)
    os.close(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return path


def make_private_folder(path: Path) -> None:
    """Make the folder and those above that are missing, synced; UsageError where it is a symbolic link."""
    try:
        _make_one(path)
    except FileNotFoundError:
        make_private_folder(path.parent)
        _make_one(path)  # the same again of a file system that makes no folders, such as /proc


def _make_one(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
        sync_folder(path.parent)
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise UsageError(linked(path) if path.is_symlink() else f"{path} is no folder") from None


def linked(path: Path) -> str:
    """What to say of a symbolic link where a file or folder of a run should be."""
    return (
        f"{path} is a symbolic link, and nothing of a run is written through one; move what it leads to here. A "
        "whole folder of runs may be a link (--runs), and checkpoints go elsewhere by checkpoint.folder"
    )


def plain_number(value: float) -> float | str:
    """`value` for JSON, which has no NaN and no infinity: those as the strings that float() reads back."""
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses in this block is a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror}; make room, or see to the disk, and give the same command "
            "again: it goes on from the last checkpoint"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Replace a file by `content`, all at once and synced."""
    replace_file(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file all at once; when this returns it survives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _write_synced(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line, synced; a torn line before it is closed first."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    closing = b"\n" * is_torn(descriptor)
    _write_synced(descriptor, closing + json.dumps(line, default=str).encode() + b"\n")
    sync_folder(path.parent)


def is_torn(descriptor: int) -> bool:
    """Whether an open file of lines ends in the middle of one, as a crash or a full disk leaves it."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def whole_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON lines of `content`; one torn by a crash is left out."""
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def create_exclusively(path: Path, content: Mapping[str, Any]) -> bool:
    """Create a JSON file, whole and synced; False where it exists: of all who try, exactly one gets True."""
    try:
        LocalFolder(path.parent).create_exclusive(path.name, json.dumps(content, default=str).encode())
    except FileExistsError:
        return False
    return True


def _write_synced(descriptor: int, content: bytes) -> None:
    try:
        left = memoryview(content)
        while left:  # a full disk writes less than asked before it raises
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
