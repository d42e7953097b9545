"""Where checkpoints are kept: one folder, on a local file system or in any store that fsspec opens."""

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from dist_trainer.adapters.local_folder import BLOCK, Buffer, Data, LocalFolder, blocks
from dist_trainer.errors import StorageError

__all__ = ["Buffer", "Data", "Storage", "blocks"]

_NAME = re.compile(r"(?!.*(^|/)\.\.?(/|$))[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_RETRY_DELAYS_S = (0.1, 0.3, 1.0, 3.0)
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PERMANENT = (*_NO_FILE, FileExistsError, NotImplementedError, PermissionError, TypeError, ValueError)
T = TypeVar("T")


class _Folder(Protocol):
    def write(self, name: str, data: Data) -> None: ...
    def create_exclusive(self, name: str, data: bytes) -> None: ...
    def read(self, name: str, seen: Callable[[memoryview], None]) -> Buffer: ...
    def stream(self, name: str, start: int, end: int | None) -> Iterator[Buffer]: ...
    def list(self, folder: str) -> list[str]: ...
    def exists(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def delete(self, name: str) -> None: ...
    def delete_folder(self, name: str) -> None: ...
    def sync_folder(self, name: str) -> None: ...
    def close(self) -> None: ...


class Storage:
    """One folder in some store, by path or URL. Names are relative to it: `step-000000010-f0001/COMMIT.json`.

    Raises FileExistsError and FileNotFoundError where they say what happened, and StorageError for all else;
    transient errors of a remote store are retried with growing delays first. `options` go to the fsspec
    file system. `shown` stands for a remote URL in messages, where that holds a secret.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        shown: str = "",
        options: Mapping[str, Any] | None = None,
        retry_delays_s: Sequence[float] = _RETRY_DELAYS_S,
    ) -> None:
        place = str(url).rstrip("/") or "/"
        path = re.sub(r"^(file|local)://", "", place)
        self.is_local = "://" not in path
        self.url = place if self.is_local else shown.rstrip("/") or place
        self._retry_delays_s = retry_delays_s
        self._folder: _Folder = LocalFolder(Path(path))
        if not self.is_local:
            self._folder = _Remote(place, self.url, options or {}, retry_delays_s)

    def write(self, name: str, data: Data) -> None:
        """Store a new file; on a local one, fsync it. A sequence of buffers is one file, in that order."""
        with self._errors("write", name):
            self._folder.write(name, data)

    def create_exclusive(self, name: str, data: bytes) -> None:
        """Store a small file, whole, if nobody has yet: of any number of callers one wins, and the others
        get FileExistsError. `data` holds something unique to the caller (a nonce): where a reply is lost,
        that is how it knows its own file again."""
        with self._errors("create", name):
            self._folder.create_exclusive(name, data)

    def read(self, name: str, *, seen: Callable[[memoryview], None] = lambda part: None) -> Buffer:
        """The whole file; `seen` is called with its parts in order, each as soon as it is there."""
        with self._errors("read", name):
            return self._folder.read(name, seen)

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The file's bytes from `start` up to `end` in blocks, each valid until the next one is asked for."""
        with self._errors("read", name):
            yield from self._folder.stream(name, start, end)

    def list(self, folder: str = "") -> list[str]:
        """The names right under `folder`, sorted and never from a cache; none where it does not exist."""
        with self._errors("list", folder):
            return self._folder.list(folder)

    def exists(self, name: str) -> bool:
        """Whether there is such a file; raises rather than take an error for a no."""
        with self._errors("look for", name):
            return self._folder.exists(name)

    def size(self, name: str) -> int:
        """The file's size in bytes."""
        with self._errors("measure", name):
            return self._folder.size(name)

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        with self._errors("delete", name):
            self._folder.delete(name)

    def delete_folder(self, name: str) -> None:
        """Remove all files under `name`."""
        with self._errors("delete", name):
            self._folder.delete_folder(name)

    def sync_folder(self, name: str = "") -> None:
        """Make what was created in the folder survive a power failure; nothing to do in an object store."""
        with self._errors("sync", name):
            self._folder.sync_folder(name)

    def close(self) -> None:
        """Give back connections."""
        self._folder.close()

    def check_promises(self) -> None:
        """Try once what the commit protocol needs; StorageError says which promise the store breaks."""
        name = f".probe-{secrets.token_hex(8)}"
        first, second = secrets.token_bytes(16), secrets.token_bytes(16)
        try:
            self.create_exclusive(name, first)
            with suppress(FileExistsError):
                self.create_exclusive(name, second)
                raise StorageError(f"{self.url}: two exclusive creates of one name both succeeded; {_NEEDS}")
            if bytes(self.read(name)) != first or self.size(name) != len(first):
                raise StorageError(f"{self.url}: what was written is not what is read back; {_NEEDS}")
            if not self._is_listed_soon(name):
                raise StorageError(f"{self.url}: a new file is missing from the listing; {_NEEDS}")
        finally:
            with suppress(StorageError):
                self.delete(name)
        if self.exists(name):
            raise StorageError(f"{self.url}: a deleted file is still there; {_NEEDS}")

    def _is_listed_soon(self, name: str) -> bool:
        for delay_s in () if self.is_local else self._retry_delays_s:  # a listing may lag behind
            if name in self.list():
                return True
            time.sleep(delay_s)
        return name in self.list()

    @contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        if name and not _NAME.fullmatch(name):
            raise StorageError(f"{self.url}: not a name for a file in here: {name!r}")
        try:
            yield
        except (FileExistsError, StorageError):
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and doing in _READING:
                raise
            where = f"{self.url}/{name}".rstrip("/")
            raise StorageError(f"{where}: cannot {doing}: {error.strerror or error}") from error


_NOT_WRITABLE = ("http://", "https://")  # somebody else's configuration could send secrets there
_READING = {"read", "open", "measure"}  # elsewhere a missing folder or bucket is the store's fault
_NEEDS = "checkpoints need exclusive creation and reading one's own writes (checkpoint.folder)"


class _Remote:
    """A folder behind fsspec, where a transient error is tried again."""

    def __init__(
        self, url: str, shown: str, options: Mapping[str, Any], retry_delays_s: Sequence[float]
    ) -> None:
        self._delays_s, self._shown = retry_delays_s, shown
        self._fs, self._root = _open_file_system(url, shown, options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _retry(self, doing: str, name: str, operation: Callable[[], T]) -> T:
        for delay_s in (*self._delays_s, None):
            try:
                return operation()
            except _PERMANENT as error:
                if isinstance(error, FileExistsError | FileNotFoundError):
                    raise
                raise StorageError(f"{self._where(name)}: cannot {doing}: {error}") from error
            except Exception as error:  # each store has its own errors; what is not permanent may pass
                if delay_s is None:
                    tries = len(self._delays_s) + 1
                    raise StorageError(
                        f"{self._where(name)}: cannot {doing}, tried {tries} times: {_text(error)}"
                    ) from error
                time.sleep(delay_s * random.uniform(0.8, 1.2))
        raise AssertionError("the last try returns or raises")

    def _where(self, name: str) -> str:
        return f"{self._shown}/{name}".rstrip("/")

    def write(self, name: str, data: Data) -> None:
        self._retry("write", name, lambda: self._put(name, data, "wb"))

    def _put(self, name: str, data: Data, mode: str) -> None:
        file = self._fs.open(self._path(name), mode)
        try:
            for block in blocks(data):
                file.write(block)
            file.close()
        except BaseException:
            # left alone, the half-filled buffer would be uploaded when it is garbage collected
            file.closed = True
            with suppress(Exception):
                file.discard()
            raise

    def create_exclusive(self, name: str, data: bytes) -> None:
        try:
            self._retry("create", name, lambda: self._put(name, data, "xb"))
        except FileExistsError:
            # also HTTP clients repeat a request whose reply was lost: the file that is there may be our own
            if bytes(self.read(name)) != data:
                raise

    def read(self, name: str, seen: Callable[[memoryview], None] = lambda part: None) -> Buffer:
        content = cast(bytes, self._retry("read", name, lambda: self._fs.cat_file(self._path(name))))
        seen(memoryview(content))
        return content

    def stream(self, name: str, start: int, end: int | None) -> Iterator[Buffer]:
        path, last, step = self._path(name), self.size(name) if end is None else end, 4 * BLOCK
        for first in range(start, last, step):

            def fetch(first: int = first) -> bytes:
                return cast(bytes, self._fs.cat_file(path, start=first, end=min(first + step, last)))

            yield self._retry("read", name, fetch)

    def list(self, folder: str) -> list[str]:
        def names() -> list[str]:
            self._fs.invalidate_cache()
            return cast("list[str]", self._fs.ls(self._path(folder), detail=False))

        try:
            found = self._retry("list", folder, names)
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found})

    def exists(self, name: str) -> bool:
        # fsspec's own exists() answers no to any error
        try:
            self._retry("look for", name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        return int(self._retry("measure", name, lambda: self._fs.info(self._path(name))["size"]))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._retry("delete", name, lambda: self._fs.rm_file(self._path(name)))

    def delete_folder(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._retry("delete", name, lambda: self._fs.rm(self._path(name), recursive=True))

    def sync_folder(self, name: str) -> None:
        """An object store has no folders to make durable."""

    def close(self) -> None:
        client = getattr(self._fs, "_s3", None)
        if client is not None:
            self._fs.close_session(self._fs.loop, client)


def _open_file_system(url: str, shown: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    import fsspec  # here: a local folder needs none of it

    if "::" in url or url.startswith(_NOT_WRITABLE):
        raise StorageError(
            f"checkpoint.folder: {shown}: is not a store that can be written to, such as s3://"
        )
    own: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if url.startswith(("s3://", "s3a://")):
        # one owner of retries: those of botocore and s3fs would multiply with ours
        own["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **options.get("config_kwargs", {})}
    try:
        fs, root = fsspec.core.url_to_fs(url, **{**options, **own})
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"checkpoint.folder: {shown}: {error}; s3:// needs `pip install 'dist-trainer[s3]'`"
        ) from error
    if hasattr(fs, "retries"):
        fs.retries = 1
    return fs, root.rstrip("/")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
