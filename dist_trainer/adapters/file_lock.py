"""One holder of a file at a time, by the kernel's flock, with the holder's name inside the file.

The lock ends with its holder, however that dies. The file holds {"pid", "host", "since", "job"}, and nothing once
released.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


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
    descriptor = _flock(path, held, is_over, patience_s)
    try:
        before = _read_owner(descriptor)
        elsewhere = before is not None and before.host != socket.gethostname()
        if before and elsewhere and not is_over(before) and still_alive():
            raise held(before)
        _write_owner(descriptor, me)
        try:
            yield
        finally:
            if _read_owner(descriptor) == me:
                _write_owner(descriptor, None)
    finally:
        os.close(descriptor)


def _flock(
    path: Path,
    held: Callable[[Owner | None], Exception],
    is_over: Callable[[Owner], bool],
    patience_s: float,
) -> int:
    """The open file: locked, or left to a holder whose time is over."""
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):  # else its folder was moved aside between open and lock
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                owner = _read_owner(descriptor)
                if owner and is_over(owner):
                    return descriptor
                os.close(descriptor)
                raise held(owner) from None
            time.sleep(0.05)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read_owner(descriptor: int) -> Owner | None:
    try:
        return Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # released, or its holder is just writing it
        return None


def _write_owner(descriptor: int, owner: Owner | None) -> None:
    content = json.dumps(asdict(owner)).encode() if owner else b""
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
