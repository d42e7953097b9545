"""One rank's process as its agent sees it: asked by a signal once, and as soon as it can hear it."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path


@dataclass
class Worker:
    """One rank of this node."""

    rank: int
    process: BaseProcess
    sent: set[signal.Signals] = field(default_factory=set)

    def ask(self, number: signal.Signals) -> None:
        """Send a signal once, as soon as the worker has a handler for it: before, it would be lost."""
        if number not in self.sent and self.process.is_alive() and _catches(self.process.pid, number):
            self.sent.add(number)
            send(self.process.pid, number)


def send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal; one that has ended needs none."""
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _catches(pid: int | None, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal (proc(5): SigCgt)."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in fields.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
