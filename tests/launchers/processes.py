"""Starts a command of our own and knows every process that came of it, by a variable in its environment."""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


class Command:
    """A command in a session of its own, as a terminal would start it."""

    def __init__(self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._mark = f"TEST_MARK={uuid.uuid4()}"
        name, value = self._mark.split("=")
        inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        paths = os.pathsep.join(filter(None, [(environment or {}).get("PYTHONPATH"), str(REPOSITORY)]))
        self.process = subprocess.Popen(
            list(arguments),
            cwd=folder,
            env={**inherited, **(environment or {}), "PYTHONPATH": paths, name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.stdout = self.stderr = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_to_group(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)

    def send_to_all(self, number: signal.Signals) -> list[str]:
        """To every process that came of the command, as SLURM does in a step; their command lines."""
        processes = self.others()
        for pid in (self.pid, *processes):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                processes.pop(pid, None)
        return list(processes.values())

    def finish(self, timeout_s: float = 60) -> int:
        """Its exit code, when it has ended; its output is in stdout and stderr."""
        self.stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    def others(self) -> dict[int, str]:
        """Every live process that came of the command, but itself: pid and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid and self._is_ours(entry):
                with contextlib.suppress(OSError):
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def _is_ours(self, entry: Path) -> bool:
        try:
            return self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def kill_other(self, pid: int) -> None:
        """SIGKILL of one of the processes that came of the command."""
        assert pid in self.others(), f"{pid} is none of {self.others()}"
        os.kill(pid, signal.SIGKILL)

    def forkserver(self) -> int:
        """The forkserver's pid: the one child of the command that runs multiprocessing.forkserver."""
        for pid, line in self.others().items():
            if "multiprocessing.forkserver" in line and parent_of(pid) == self.pid:
                return pid
        raise AssertionError(f"no forkserver among {self.others()}")

    def end(self) -> None:
        """End whatever is left, after the test has looked."""
        for pid in [*self.others(), *([self.pid] if self.process.poll() is None else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def parent_of(pid: int) -> int:
    """The parent's pid."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(fields[fields.index("SigCgt:") + 1], 16) >> (number - 1) & 1)


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 60, what: str = "") -> Any:
    """The first truthy value of `condition`. The time is for what never comes: a busy machine takes what it takes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain: {what or condition}")


def last_object(text: str) -> dict[str, Any]:
    """The JSON object in the last line."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
