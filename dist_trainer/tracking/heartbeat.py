"""A rank's heartbeat: one small file that says what it is doing, for watchdog, progress bar and `explain`.

One line of JSON, padded with spaces to a fixed length and overwritten in place, never synced:

    {"pid": 4711, "rank": 0, "attempt": 3, "step": 120, "phase": "train", "time": 1730000000.123456}
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

_LENGTH = 256  # below any block size: one write is seen whole or not at all by readers on this host


@dataclass(frozen=True)
class Beat:
    """The last thing a rank said; `time` is its host's clock."""

    pid: int
    rank: int
    attempt: int
    step: int
    phase: str
    time: float


class Heartbeat:
    """Overwrites one rank's heartbeat file; cheap enough for every step."""

    def __init__(self, path: Path, *, rank: int, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._head = f'{{"pid": {os.getpid()}, "rank": {rank}, "attempt": {attempt}, "step": '

    def beat(self, step: int, phase: str) -> None:
        """Say that `step` is being worked on; `phase` is a short plain word such as train, eval, save."""
        line = f'{self._head}{step}, "phase": "{phase}", "time": {time.time():.6f}}}'
        os.pwrite(self._file, line.ljust(_LENGTH - 1).encode() + b"\n", 0)

    def close(self) -> None:
        """Close the file; the last beat stays."""
        os.close(self._file)


def read_heartbeat(path: Path) -> Beat | None:
    """The last beat; None before the first."""
    try:
        return Beat(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
