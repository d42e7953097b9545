"""A model of a disk under a power cut: what was done is recorded, and played back with what was not synced lost.

What POSIX promises and no more. A file's content survives once the file was fsynced, a name once its folder was.
Of what was not, any part may be there all the same, in any order: a write or none of it, its first bytes, or as many
zeros; a name, or not. A rename is there or not, never half.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Chance = random.Random


@dataclass
class Write:
    """Bytes put at an offset; None for a change of the file's length to `offset`."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray, data: bytes | None) -> None:
        """Put `data` where this write goes."""
        if data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
            return
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(data)] = data


@dataclass
class File:
    """What is on the disk of a file, and what may be."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def sync(self) -> None:
        """fsync."""
        self.synced, self.pending = self.content(lambda write: write.data), []

    def content(self, what_came: Callable[[Write], bytes | None]) -> bytearray:
        """The content if of each pending write that came which `what_came` says."""
        content = bytearray(self.synced)
        for write in self.pending:
            write.apply(content, what_came(write))
        return content


@dataclass
class Folder:
    """The names that are on the disk, and changes that may be; a name leads to a File, a Folder or nothing."""

    synced: dict[str, "Node"] = field(default_factory=dict)
    pending: list[dict[str, "Node | None"]] = field(
        default_factory=list
    )  # a rename changes two names at once

    def sync(self) -> None:
        """fsync."""
        self.synced, self.pending = self.names(lambda: True), []

    def names(self, comes: Callable[[], bool]) -> dict[str, "Node"]:
        """The names if each pending change came or not."""
        found: dict[str, Node | None] = dict(self.synced)
        for change in self.pending:
            if comes():
                found |= change
        return {name: node for name, node in found.items() if node is not None}


Node = File | Folder
Step = Callable[["Disk"], None]


class Disk:
    """A tree of files as recorded so far; paths are relative to its root."""

    def __init__(self) -> None:
        self.root = Folder()

    def at(self, path: str) -> Node:
        """What every process sees there now."""
        node: Node = self.root
        for part in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.names(lambda: True)[part]
        return node

    def folder(self, path: str) -> Folder:
        """The folder there."""
        found = self.at(path)
        assert isinstance(found, Folder)
        return found

    def change(self, *changes: tuple[str, "Node | None"]) -> None:
        """Change names of one folder together; not synced."""
        folder = self.folder(str(Path(changes[0][0]).parent))
        folder.pending.append({Path(path).name: node for path, node in changes})

    def after_power_cut(self, target: Path, chance: Chance, keep: float | None) -> None:
        """Lay out what is left in an empty folder. `keep`: the share of what was not synced that is there all the
        same; None draws it."""
        share = chance.random() if keep is None else keep

        def comes() -> bool:
            return chance.random() < share

        def what_came(write: Write) -> bytes | None:
            if write.data is None or comes():
                return write.data
            part = write.data[: chance.randrange(len(write.data) + 1)] if keep is None else b""
            return part if comes() else bytes(len(part))

        self._lay_out(self.root, target, comes, what_came, {})

    def _lay_out(
        self,
        folder: Folder,
        target: Path,
        comes: Callable[[], bool],
        what_came: Callable[[Write], bytes | None],
        contents: dict[int, bytes],
    ) -> None:
        for name, node in folder.names(comes).items():
            if isinstance(node, Folder):
                (target / name).mkdir()
                self._lay_out(node, target / name, comes, what_came, contents)
                continue
            if id(node) not in contents:  # two names of one file have one content
                contents[id(node)] = bytes(node.content(what_came))
            (target / name).write_bytes(contents[id(node)])


class Recorder:
    """The calls that change files under `root`, which is empty at first, and what the tests say in between."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[Step | str] = []  # a word of the test's own, or a change
        self._open: dict[int, tuple[str, int]] = {}  # descriptor -> path, position; -1: at the end
        self._lock = threading.RLock()
        self._count = 0

    def say(self, word: str) -> None:
        """Note that something is promised from here on."""
        with self._lock:
            self.steps.append(word)

    def disk(self, length: int | None = None) -> Disk:
        """The model after the first `length` steps."""
        disk = Disk()
        for step in self.steps[:length]:
            if not isinstance(step, str):
                step(disk)
        return disk

    def words(self, length: int) -> list[str]:
        """What was promised by then."""
        return [step for step in self.steps[:length] if isinstance(step, str)]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record every call of this process."""
        real = {name: getattr(os, name) for name in dir(self) if name in _RECORDED}
        for name in real:
            setattr(os, name, self._recorded(real[name], getattr(self, name)))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _recorded(self, real: Any, note: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                return note(real, *arguments, **keywords)

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        if dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        path = Path(os.path.abspath(path))  # noqa: PTH100  a link is a name like any other
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else None

    def open(self, real: Any, path: Any, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        inside = self._inside(path, dir_fd)
        is_new = inside is not None and not os.path.lexists(self.root / inside)
        descriptor: int = real(path, flags, *rest, dir_fd=dir_fd)
        if inside is not None:
            if is_new:
                self.steps.append(lambda disk: disk.change((inside, File())))
            self._open[descriptor] = (inside, -1 if flags & os.O_APPEND else 0)
            node = self.root / inside
            assert not (flags & os.O_TRUNC) and (node.is_dir() or node.is_file())
        return descriptor

    def close(self, real: Any, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        real(descriptor)

    def write(self, real: Any, descriptor: int, data: Any) -> int:
        path, position = self._open.get(descriptor, ("", 0))
        if descriptor not in self._open:
            return int(real(descriptor, data))
        offset = os.fstat(descriptor).st_size if position < 0 else position
        count = int(real(descriptor, data))
        self._note_write(descriptor, offset, bytes(data)[:count])
        if position >= 0:
            self._open[descriptor] = (path, position + count)
        return count

    def pwrite(self, real: Any, descriptor: int, data: Any, offset: int) -> int:
        count = int(real(descriptor, data, offset))
        if descriptor in self._open:
            self._note_write(descriptor, offset, bytes(data)[:count])
        return count

    def ftruncate(self, real: Any, descriptor: int, length: int) -> None:
        real(descriptor, length)
        if descriptor in self._open:
            self._note_write(descriptor, length, None)

    def _note_write(self, descriptor: int, offset: int, data: bytes | None) -> None:
        path = self._open[descriptor][0]

        def write(disk: Disk) -> None:
            node = disk.at(path)
            assert isinstance(node, File)
            node.pending.append(Write(offset, data))

        self.steps.append(write)

    def fsync(self, real: Any, descriptor: int) -> None:
        if descriptor in self._open:  # not for real: it is the model that counts
            path = self._open[descriptor][0]
            self.steps.append(lambda disk: disk.at(path).sync())

    def link(self, real: Any, source: Any, target: Any) -> None:
        real(source, target)
        old, new = self._inside(source), self._inside(target)
        if old is not None and new is not None:
            self.steps.append(lambda disk: disk.change((new, disk.at(old))))

    def unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        inside = self._inside(path, dir_fd)
        real(path, dir_fd=dir_fd)
        if inside is not None:
            self.steps.append(lambda disk: disk.change((inside, None)))

    rmdir = unlink

    def mkdir(self, real: Any, path: Any, *rest: Any) -> None:
        real(path, *rest)
        inside = self._inside(path)
        if inside is not None:
            self.steps.append(lambda disk: disk.change((inside, Folder())))

    def replace(self, real: Any, source: Any, target: Any) -> None:
        real(source, target)
        old, new = self._inside(source), self._inside(target)
        if old is not None and new is not None:
            assert Path(old).parent == Path(new).parent, "a rename from folder to folder is not modelled"
            self.steps.append(lambda disk: disk.change((new, disk.at(old)), (old, None)))

    rename = replace


_RECORDED = (
    *("open", "close", "write", "pwrite", "ftruncate", "fsync"),
    *("link", "unlink", "rmdir", "mkdir", "replace", "rename"),
)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's content under a folder, and None for each folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
