"""Finds workers of this node that hang, and has each of them write its stack before they are ended."""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dist_trainer.adapters.files import open_log
from dist_trainer.errors import RankStuck
from dist_trainer.launchers.processes import Worker, send
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat
from dist_trainer.tracking.silence import Hang, Silence

STACK_SIGNAL = signal.SIGQUIT  # workers write the stacks of all their threads, whatever they are blocked in
_LOOKS_EVERY_S = 0.5
_OTHER_NODES_MAY_TAKE_S = 5.0  # to end their own hanging rank, which says more than ours that wait for it
_A_STACK_MAY_TAKE_S = 0.5
_STACKS_MAY_TAKE_S = 2.0  # those of all processes of a rank, which write one after another


class HangWatch:
    """Looks at the heartbeats of a run's workers over all attempts of one command."""

    def __init__(self, run: RunFolder, timeout_s: float) -> None:
        self._run = run
        self._silence = Silence(timeout_s)
        self._looked_at = 0.0
        self._has_stacks = False

    def begin(self) -> None:
        """The workers of another attempt."""
        self._silence.begin()
        self._has_stacks = False

    def look(self, workers: Sequence[Worker], attempt: int) -> Hang | None:
        """What hangs and is to be ended now; the stacks are in the ranks' logs then."""
        now = time.monotonic()
        if now - self._looked_at < _LOOKS_EVERY_S:
            return None
        self._looked_at = now
        own = {worker.rank for worker in workers if worker.process.is_alive()}
        ended = {worker.rank for worker in workers} - own
        beats = [beat for beat in self._beats(attempt) if beat.rank not in ended]
        hang = self._silence.look(beats, now, watched=own)
        if hang is None:
            return None
        if not self._has_stacks:
            self._has_stacks = True
            self._write_stacks(hang, workers, attempt)
        is_ours = any(beat.rank in own for beat in hang.stuck)
        return hang if is_ours or hang.overdue_s > _OTHER_NODES_MAY_TAKE_S else None

    def _beats(self, attempt: int) -> list[Beat]:
        """Of all nodes' ranks, as far as they are seen here."""
        beats = map(read_heartbeat, self._run.heartbeat_path(0).parent.glob("rank-*"))
        return [beat for beat in beats if beat and beat.attempt == attempt]

    def leave_word(self, hang: Hang, workers: Sequence[Worker], attempt: int) -> None:
        """An error of each rank that was waited for, as if it had said so itself."""
        pids = {worker.rank: worker.process.pid for worker in workers}
        hang = hang.because_of({rank for rank, pid in pids.items() if pid is not None and _is_stopped(pid)})
        error = RankStuck(hang.describe())
        known = {word.rank for word in self._run.read_errors(attempt)}
        for beat in hang.stuck:
            if beat.rank not in known:
                with suppress(OSError):  # a full disk
                    self._run.write_error(
                        attempt, beat.rank, error=error, step=beat.trained_step, exit_code=error.exit_code
                    )

    def _write_stacks(self, hang: Hang, workers: Sequence[Worker], attempt: int) -> None:
        """One process after another into each log: two at once would mix their lines."""
        pids = {worker.rank: worker.process.pid for worker in workers if worker.process.is_alive()}
        left = {rank: _with_children(pid) for rank, pid in pids.items() if pid is not None}
        deadline = time.monotonic() + _STACKS_MAY_TAKE_S
        while any(left.values()) and time.monotonic() < deadline:
            sizes = {}
            for rank in [rank for rank, processes in left.items() if processes]:
                pid, log = left[rank].pop(0), self._run.log_path(attempt, rank)
                who = "this rank" if pid == pids[rank] else f"its loader process {pid}"
                sizes[log] = _announce(log, f"no progress for {hang.silent_s:.0f} s; what {who} was doing:")
                send(pid, STACK_SIGNAL)
            _wait_until_written(sizes)


def _announce(log: Path, line: str) -> int:
    """Say in a rank's log whose stacks follow; how long the log is then."""
    with suppress(OSError), open_log(log) as file:
        file.write(f"\n{line}\n".encode())
        return os.fstat(file.fileno()).st_size
    return 0


def _wait_until_written(sizes: dict[Path, int]) -> None:
    """Until each of them has grown, and grows no more; not every process writes something."""
    before, deadline = sizes, time.monotonic() + _A_STACK_MAY_TAKE_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = {log: log.stat().st_size for log in sizes if log.exists()}
        if now == before and all(now.get(log, 0) > size for log, size in sizes.items()):
            return
        before = now


def _with_children(pid: int) -> list[int]:
    """A rank's process and those of its loaders, which inherited what writes a stack; none that is stopped."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return [each for each in found if _catches(each) and not _is_stopped(each)]


def _catches(pid: int) -> bool:
    """Whether it writes its stacks at the signal, which ends any other program, such as a compiler (proc(5))."""
    with suppress(OSError):
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> (STACK_SIGNAL - 1) & 1)
    return False


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger has stopped it (proc(5): State)."""
    with suppress(OSError):
        return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text()
    return False


def write_stacks_when_asked() -> None:
    """In a worker: STACK_SIGNAL writes every thread's stack to standard error, from C, so that a blocked
    interpreter does so too; forked loader processes inherit it."""
    faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [STACK_SIGNAL])
