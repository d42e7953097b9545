"""One holder of a file at a time, by the kernel's flock, with the holder's name inside the file.

The lock ends with its holder, however that dies. The file holds {"pid", "host", "since", "job"}, and nothing once
released. A holder whose time is over, though its process lives, keeps its flock on a file that is no longer there:
who takes over puts a new one in its place.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_trainer.adapters.files import open_private
from dist_trainer.adapters.records import read_record

_CHANGES_WITHIN_S = 5.0  # it takes milliseconds


@dataclass(frozen=True)
class Owner:
    """Who holds a lock; `since` is its host's clock, `job` the scheduler's job that it is a part of."""

    pid: int
    host: str
    since: float
    job: str | None = None


@contextmanager
def hold(
    path: Path,
    *,
    held: Callable[[Owner | None], Exception],
    job: str | None = None,
    is_over: Callable[[Owner], bool] = lambda owner: False,
    still_alive: Callable[[], bool] = lambda: False,
    patience_s: float = 2.0,
) -> Iterator[None]:
    """Hold the lock, or raise what `held` makes of its owner.

    Patience, because a dead holder's forked children keep its lock for the moment they take to die.
    `still_alive` is asked where the file names an owner on another host that never released it: its lock may
    not reach us. `is_over` says that an owner lost its right to hold on, though its process may live: a
    scheduler took its job away, and the file is written without waiting for it.
    """
    me = Owner(os.getpid(), socket.gethostname(), time.time(), job)
    descriptor = _claim(path, me, held, is_over, still_alive, patience_s)
    try:
        yield
    finally:
        with suppress(OSError):  # whoever took over from us has removed the file
            _write_owner(descriptor, None)
        os.close(descriptor)


def read_owner(path: Path) -> Owner | None:
    """Whose name the lock's file has: its holder, or who died without releasing it."""
    try:
        return read_record(Owner, path.read_bytes())
    except (OSError, ValueError):
        return None


def _claim(
    path: Path,
    me: Owner,
    held: Callable[[Owner | None], Exception],
    is_over: Callable[[Owner], bool],
    still_alive: Callable[[], bool],
    patience_s: float,
) -> int:
    """The open file at `path`, locked and with our name in it."""
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = _flock(path, me, held, is_over, deadline)
        try:
            before = _read_owner(descriptor)
            elsewhere = before is not None and before.host != socket.gethostname()
            if before and elsewhere and not is_over(before) and still_alive():
                raise held(before)
            with _alone(path, held):
                if _is_at(descriptor, path):  # else its folder was moved aside, or somebody took over
                    _write_owner(descriptor, me)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(
    path: Path,
    me: Owner,
    held: Callable[[Owner | None], Exception],
    is_over: Callable[[Owner], bool],
    deadline: float,
) -> int:
    """The open file, locked; where its holder's time is over a new one, locked, in its place."""
    while True:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            if _try_flock(descriptor):
                return os.dup(descriptor)
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            owner = _read_owner(descriptor)
            if owner is None or not is_over(owner):
                raise held(owner)
            with _alone(path, held):
                if _is_at(descriptor, path) and _read_owner(descriptor) == owner:
                    return _replace(path, me)
        finally:
            os.close(descriptor)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, me: Owner) -> int:
    """A new file in the place of the one at `path`: it is locked and ours before anybody can see it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = open_private(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_owner(descriptor, me)
        temporary.replace(path)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


@contextmanager
def _alone(path: Path, held: Callable[[Owner | None], Exception]) -> Iterator[None]:
    """Be the only one who changes whose lock it is: a name is written, or the file replaced, by one at a time."""
    guard = path.with_name(f".{path.name}.changing")
    deadline = time.monotonic() + _CHANGES_WITHIN_S
    while True:
        descriptor = open_private(guard, os.O_RDWR | os.O_CREAT)
        try:
            if _try_flock(descriptor) and _is_at(descriptor, guard):
                try:
                    yield
                finally:
                    guard.unlink(missing_ok=True)  # while it is held: who waits for it looks for it again
                return
        finally:
            os.close(descriptor)
        if time.monotonic() >= deadline:
            raise held(None)
        time.sleep(0.005)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:  # there is none, or on a network file system ours was removed by another host
        return False


def _read_owner(descriptor: int) -> Owner | None:
    try:
        return read_record(Owner, os.pread(descriptor, 4096, 0))
    except ValueError:  # released, or its holder is just writing it
        return None


def _write_owner(descriptor: int, owner: Owner | None) -> None:
    content = json.dumps(asdict(owner)).encode() if owner else b""
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
