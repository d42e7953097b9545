"""A rank's heartbeat: one small file that says what it is doing, for watchdog, progress bar and `explain`.

One line of JSON, padded with spaces to a fixed length and overwritten in place, never synced:

    {"pid": 4711, "rank": 0, "attempt": 3, "step": 120, "phase": "train", "time": 1730000000.123456}

`step` is how many were done; the phase says what is done towards the next one, or after that one.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.adapters.files import make_private_folder, open_private
from dist_trainer.adapters.records import read_record

_LENGTH = 256  # below any block size: one write is seen whole or not at all by readers on this host

# In the order in which a rank passes through them between two steps; for messages, in words. A rank says
# those of WAITING while it can go on only once all others have come as far.
PHASES = {
    "start-up": "starting up",
    "joining": "joining the others",
    "resume": "reading its checkpoint",
    "hooks": "in a hook after step {done}",
    "exchange": "exchanging numbers with the others after step {done}",
    "evaluate": "in the evaluation after step {done}",
    "test": "in the evaluation of data.test after step {done}",
    "save": "in the save of step {done}",
    "data": "in data loading for step {next}",
    "broadcast": "in the broadcast of buffers for step {next}",
    "train": "computing step {next}",
    "compile": "compiling for step {next}",
    "read-ahead": "in data loading for step {after}",
    "all-reduce": "in the all-reduce of step {next}",
    "update": "in the update of step {next}",
    "end": "ending",
}
WAITING = ("joining", "exchange", "broadcast", "all-reduce")
OF_A_STEP = ("data", "broadcast", "train", "read-ahead", "all-reduce", "update", "hooks", "exchange")
BEFORE_TRAINING = ("start-up", "joining", "resume")


@dataclass(frozen=True)
class Beat:
    """The last thing a rank said; `time` is its host's clock."""

    pid: int
    rank: int
    attempt: int
    step: int
    phase: str
    time: float

    @property
    def doing(self) -> str:
        """What the rank does, in words."""
        return PHASES.get(self.phase, f"in {self.phase}").format(
            done=self.step, next=self.step + 1, after=self.step + 2
        )

    @property
    def place(self) -> tuple[int, int]:
        """How far the rank is: who has the lowest place is waited for."""
        return self.step, list(PHASES).index(self.phase) if self.phase in PHASES else len(PHASES)

    @property
    def is_waiting(self) -> bool:
        """Whether it can go on only with the others."""
        return self.phase in WAITING

    @property
    def trained_step(self) -> int | None:
        """`step`, or None before it is known."""
        return None if self.phase in BEFORE_TRAINING else self.step


class Heartbeat:
    """Overwrites one rank's heartbeat file; cheap enough for every step."""

    def __init__(self, path: Path, *, rank: int, attempt: int) -> None:
        make_private_folder(path.parent)
        self._file = open_private(path, os.O_WRONLY | os.O_CREAT)
        whose = f'{{"pid": {os.getpid()}, "rank": {rank}, "attempt": {attempt}'
        line = whose + ', "step": %d, "phase": "%s", "time": %.6f}'
        self._line = line.encode().replace(b"%s", b"%b")
        self._step, self._phase = 0, "start-up"

    def beat(self, step: int, phase: str) -> None:
        """Say that `step` steps are done and what is done now; `phase` is one of PHASES."""
        self._step, self._phase = step, phase
        line = self._line % (step, phase.encode(), time.time())
        try:  # noqa: SIM105 (suppress takes a fifth of all that a beat does)
            os.pwrite(self._file, line.ljust(_LENGTH - 1) + b"\n", 0)
        except OSError:
            pass  # a full disk is no reason to stop training

    def says(self, step: int, phase: str) -> bool:
        """Whether that is what it said last."""
        return (step, phase) == (self._step, self._phase)

    def again(self) -> None:
        """Say that something got done in the same phase."""
        self.beat(self._step, self._phase)

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """In this block the rank waits for others. After an error in it, that stays the last word."""
        before = self._phase
        self.beat(self._step, phase)
        yield
        self.beat(self._step, before)

    def close(self) -> None:
        """Close the file; the last beat stays."""
        os.close(self._file)


def read_heartbeat(path: Path) -> Beat | None:
    """The last beat; None before the first."""
    try:
        return read_record(Beat, path.read_bytes())
    except (OSError, ValueError):
        return None
