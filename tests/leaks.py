"""Which processes, threads and environment variables are there that were not there before."""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_GRACE_S = 3.0
_MARK = f"TEST_SESSION={uuid.uuid4()}"  # every process that comes of a test inherits it, orphans too
os.environ.update([_MARK.split("=")])
# multiprocessing keeps these for the life of the process that started them
_KEPT_PROCESSES = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
_KEPT_THREADS = ("fsspecIO",)  # fsspec's event loop, which it never ends
_NOT_LOOKED_AT = (
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",  # set for good by torch's first optimizer, which imports its compiler
    "KMP_DUPLICATE_LIB_OK",  # set for good where scikit-learn is imported first
    "KMP_INIT_AT_FORK",
)


@dataclass(frozen=True)
class Left:
    """What is left, to be shown."""

    processes: dict[tuple[int, float], str] = field(default_factory=dict)
    threads: dict[int, str] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.processes or self.threads or self.variables)

    def __str__(self) -> str:
        shown = [f"process {pid}: {command}" for (pid, _), command in self.processes.items()]
        shown += [f"thread {name}" for name in self.threads.values()]
        shown += [f"variable {name}={value}" for name, value in self.variables.items()]
        return "; ".join(shown)

    def update(self, other: "Left") -> None:
        """Add what another found."""
        self.processes.update(other.processes)
        self.threads.update(other.threads)
        self.variables.update(other.variables)


@dataclass(frozen=True)
class Sight:
    """What is there at one moment; processes by pid and start time, since a pid is used again."""

    processes: dict[tuple[int, float], str]
    threads: dict[int, str]
    variables: dict[str, str]

    def since(self, before: "Sight") -> Left:
        """What is here and was not there before; a variable that is gone or has changed counts too."""
        names = self.variables.keys() | before.variables.keys()
        return Left(
            {key: name for key, name in self.processes.items() if key not in before.processes},
            {key: name for key, name in self.threads.items() if key not in before.threads},
            {n: v for n in names if (v := self.variables.get(n)) != before.variables.get(n)},
        )

    def wait_for_end(self, look_again: Callable[[], "Sight"], *, allowed: Left) -> Left:
        """What is left of what came after this sight, once what is ending has had time to end."""
        deadline = time.monotonic() + _GRACE_S
        while (left := _without(look_again().since(self), allowed)) and time.monotonic() < deadline:
            if not left.processes and not left.threads:
                return left
            time.sleep(0.02)
        return left

    def restore_environment(self) -> None:
        """Put the variables back, so that only the test that changed them fails."""
        for name in [name for name in os.environ if name not in self.variables]:
            if name not in _NOT_LOOKED_AT:
                del os.environ[name]
        os.environ.update(self.variables)


def look() -> Sight:
    """What is there now: some milliseconds."""
    return Sight(
        {key: command for key, command in _processes() if command},
        {id(thread): thread.name for thread in threading.enumerate() if not _is_kept(thread)},
        {name: value for name, value in os.environ.items() if name not in _NOT_LOOKED_AT},
    )


def _without(left: Left, allowed: Left) -> Left:
    return Left(
        {key: name for key, name in left.processes.items() if key not in allowed.processes},
        {key: name for key, name in left.threads.items() if key not in allowed.threads},
        {n: v for n, v in left.variables.items() if n not in allowed.variables or v != allowed.variables[n]},
    )


def _is_kept(thread: threading.Thread) -> bool:
    # a dummy is a native thread of a library that once called into Python
    return thread.name.startswith(_KEPT_THREADS) or isinstance(thread, threading._DummyThread)


def _processes() -> Iterator[tuple[tuple[int, float], str]]:
    # a fork has the environment that its parent began with, so the mark does not show in it
    pids = {child.pid for child in psutil.Process().children(recursive=True)} | set(_marked())
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            yield _described(pid)


def _marked() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _MARK.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _described(pid: int) -> tuple[tuple[int, float], str]:
    """Key and command line of a process; no command line for one that may stay, or that has ended."""
    process = psutil.Process(pid)
    key, command = (pid, process.create_time()), " ".join(process.cmdline())
    is_kept = process.ppid() == os.getpid() and any(name in command for name in _KEPT_PROCESSES)
    return key, "" if is_kept or process.status() == psutil.STATUS_ZOMBIE else command
