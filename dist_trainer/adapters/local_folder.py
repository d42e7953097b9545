"""A folder on a local or mounted file system, with the durability that a commit needs."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

Buffer = bytes | bytearray | memoryview
Data = Buffer | Sequence[Buffer]  # a sequence is written one after the other, without being joined first

BLOCK = 8 << 20
_SMALL = (
    64 << 10
)  # buffers below this are gathered: a call for each of a thousand scalars is slower than a copy
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # such a file system has no folder entries of its own to sync
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


class LocalFolder:
    """The files under `root`. Raises plain OSErrors; every created file is fsynced before it is closed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, data: Data) -> None:
        """Create a new file; FileExistsError where it is there already."""
        path = self.root / name
        self._make_folder(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
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
            self.write(name, data)

    def read(self, name: str) -> bytearray:
        """The whole file."""
        with (self.root / name).open("rb", buffering=0) as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            filled = 0
            while filled < len(content) and (count := file.readinto(memoryview(content)[filled:])):
                filled += count
        return content[:filled] if filled < len(content) else content

    def stream(self, name: str) -> Iterator[Buffer]:
        """The file in blocks, each valid until the next one is asked for."""
        block = bytearray(BLOCK)
        with (self.root / name).open("rb", buffering=0) as file:
            while count := file.readinto(block):
                yield memoryview(block)[:count]

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
        return (self.root / name).stat().st_size

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        """Remove the folder and all that is in it, if it is there."""
        path = self.root / name
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            # someone removed a file in the same moment; once more takes the rest
            shutil.rmtree(path, ignore_errors=True)

    def sync_folder(self, name: str) -> None:
        """Make the folder's own entries durable."""
        descriptor = os.open(self.root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self.sync_folder(str(folder.parent.absolute()))

    def close(self) -> None:
        """Nothing is held open."""
