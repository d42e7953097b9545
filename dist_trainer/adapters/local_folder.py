"""A folder on a local or mounted file system, with the durability that a commit needs."""

import errno
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path

Buffer = bytes | bytearray | memoryview
Data = Buffer | Sequence[Buffer]  # a sequence is written one after the other, without being joined first

BLOCK = 8 << 20
_SMALL = (
    64 << 10
)  # buffers below this are gathered: a call for each of a thousand scalars is slower than a copy
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # such a file system has no folder entries of its own to sync
_NO_FILE = "is no plain file"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def blocks(data: Data) -> Iterator[memoryview]:
    """The bytes of `data` in order, in views of at most 8 MiB; nothing large is copied."""
    gathered = bytearray()
    for part in [data] if isinstance(data, Buffer) else data:
        view = memoryview(part)
        if view.nbytes == 0:
            continue
        view = view.cast("B")
        if view.nbytes < _SMALL:
            gathered += view
            if len(gathered) < BLOCK - _SMALL:
                continue
        if gathered:
            yield memoryview(gathered)
            gathered = bytearray()
        if view.nbytes >= _SMALL:
            for start in range(0, view.nbytes, BLOCK):
                yield view[start : start + BLOCK]
    if gathered:
        yield memoryview(gathered)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, that survive a power cut; for their owner alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_folder(path.parent)


class LocalFolder:
    """The files under `root`. Raises plain OSErrors; every created file is fsynced before it is closed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, data: Data) -> None:
        """Create a new file; FileExistsError where it is there already."""
        path = self._unlinked(name)
        make_folder(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for block in blocks(data):
                while block:  # a nearly full disk writes short before it fails
                    block = block[os.write(descriptor, block) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create_exclusive(self, name: str, data: bytes) -> None:
        """Create a whole file or none: a reader, or a crash, never sees a part of it."""
        temporary = f"{name}.{secrets.token_hex(8)}.tmp"
        self.write(temporary, data)
        try:
            self._link(temporary, name, data)
        finally:
            self.delete(temporary)
        self.sync_folder(str(Path(name).parent))

    def _link(self, temporary: str, name: str, data: bytes) -> None:
        try:
            os.link(self.root / temporary, self.root / name)
        except FileExistsError:
            # NFS repeats a request whose reply was lost: then the second link is our own
            if (self.root / temporary).stat().st_nlink != 2:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._write_whole(name, data)

    def _write_whole(self, name: str, data: bytes) -> None:
        """Without links: what could not be written to its end is no file."""
        try:
            self.write(name, data)
        except FileExistsError:
            raise
        except OSError:
            self.delete(name)
            raise

    def read(self, name: str, seen: Callable[[memoryview], None]) -> Buffer:
        """The whole file; `seen` is called with each part of it as soon as that is there."""
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return b""
            # a bytearray would be filled with zeros before anything is read into it
            content, filled = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)), 0
            while filled < size and (count := file.readinto(content[filled : filled + BLOCK])):
                seen(content[filled : filled + count])
                filled += count
        return content[:filled]

    def stream(self, name: str, start: int, end: int | None) -> Iterator[Buffer]:
        """The bytes from `start` up to `end` in blocks, each valid until the next one is asked for."""
        with self._open(name) as file:
            left = (os.fstat(file.fileno()).st_size if end is None else end) - start
            block = memoryview(bytearray(max(0, min(BLOCK, left))))
            file.seek(start)
            while left > 0 and (count := file.readinto(block[:left])):
                yield block[:count]
                left -= count

    def list(self, folder: str) -> list[str]:
        """The names right under `folder`, sorted; none where there is no such folder."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder; an error is not a no."""
        try:
            (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, name: str) -> int:
        """The file's size in bytes."""
        found = (self.root / name).stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, _NO_FILE, name)
        return found.st_size

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        self._unlinked(name).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        """Remove the folder and all that is in it, if it is there."""
        path = self._unlinked(name)
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            # someone removed a file in the same moment; once more takes the rest
            shutil.rmtree(path, ignore_errors=True)

    def sync_folder(self, name: str) -> None:
        """Make the folder's own entries durable."""
        sync_folder(self.root / name)

    def _open(self, name: str) -> FileIO:
        """Open a plain file for reading: a named pipe in its place would be waited for."""
        descriptor = os.open(self.root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return FileIO(descriptor)
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, _NO_FILE, name)

    def _unlinked(self, name: str) -> Path:
        """Where to change something: not through a link in here, which may lead to anything. `root` may be one."""
        for folder in Path(name).parents:
            if folder != Path() and (self.root / folder).is_symlink():
                raise OSError(errno.ELOOP, f"{folder} is a symbolic link, and nothing is changed through one")
        return self.root / name

    def close(self) -> None:
        """Nothing is held open."""
