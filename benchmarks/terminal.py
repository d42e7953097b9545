"""Runs a command on a terminal of its own, so that what it draws there costs what it costs a user."""

import os
import pty
import signal
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROWS, COLUMNS = 40, 120
REPOSITORY = Path(__file__).parents[1]
_TAIL_BYTES = 4000
_ENDING_S = 30.0  # what a launcher may take to end its workers


def run_on_terminal(arguments: Sequence[str], folder: Path, *, timeout_s: float = 300) -> None:
    """Until it ends. One thread a process, and this repository importable. RuntimeError: what it wrote last."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    tail = bytearray()
    reading = threading.Thread(target=_read_away, args=(ours, tail))
    reading.start()
    try:
        code = process.wait(timeout_s)
    finally:
        _end(process)
        reading.join()
        os.close(ours)
    if code != 0:
        raise RuntimeError(f"exit code {code} of {' '.join(arguments)}: {tail.decode(errors='replace')}")


def environment() -> Mapping[str, str]:
    """That of every command which is compared."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "PYTHONPATH": path}


def _read_away(terminal: int, tail: bytearray) -> None:
    while True:
        try:
            found = os.read(terminal, 1 << 16)
        except OSError:  # EIO: nobody has it open any more
            return
        tail += found
        del tail[:-_TAIL_BYTES]


def _end(process: subprocess.Popen[bytes]) -> None:
    """A launcher that is asked ends its workers, which have sessions of their own; one killed may leave them."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
