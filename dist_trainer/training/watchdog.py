"""Ends a rank that hangs with its group where no agent of ours watches it: under torchrun, or alone in a script."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dist_trainer.errors import RankStuck
from dist_trainer.run_folder import Status
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat
from dist_trainer.tracking.silence import Hang, Silence
from dist_trainer.training.attempt import Attempt

_LOOKS_EVERY_S = 1.0
_OTHERS_MAY_TAKE_S = 5.0  # to end their own hanging rank, which says more than one that waits


@contextmanager
def watched(attempt: Attempt, timeout_s: float) -> Iterator[None]:
    """Watch this rank in this block, from a thread: begin it after the loader's processes were forked.

    A rank that is one of several leaves its stack and word of who waits for whom, and ends with 1, so that
    torchrun starts all again. One that nobody launched is never ended: somebody may be debugging it.
    """
    if attempt.has_agent:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(attempt, timeout_s, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(attempt: Attempt, timeout_s: float, over: threading.Event) -> None:
    silence, told = Silence(timeout_s), False
    while not over.wait(_LOOKS_EVERY_S):
        hang = silence.look(_beats(attempt), time.monotonic(), watched={attempt.group.rank})
        if hang is None:
            told = False
        elif not attempt.group.place.launched:
            told = told or _show(hang)
        elif (
            any(beat.rank == attempt.group.rank for beat in hang.stuck) or hang.overdue_s > _OTHERS_MAY_TAKE_S
        ):
            _show(hang)
            _leave(attempt, hang)


def _beats(attempt: Attempt) -> list[Beat]:
    paths = (attempt.run.heartbeat_path(rank) for rank in range(attempt.group.world_size))
    return [beat for beat in map(read_heartbeat, paths) if beat and beat.attempt == attempt.number]


def _show(hang: Hang) -> bool:
    sys.stderr.write(f"{hang.describe()}\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(file=2, all_threads=True)
    return True


def _leave(attempt: Attempt, hang: Hang) -> None:
    rank, step = attempt.group.rank, hang.stuck[0].trained_step
    error = RankStuck(hang.describe())
    try:
        attempt.run.write_error(attempt.number, rank, error=error, step=step, exit_code=error.exit_code)
        if attempt.run.highest_fence() == attempt.number:
            attempt.run.write_status(Status("failed", str(error), step))
    finally:  # whatever the disk says
        os._exit(error.exit_code)
