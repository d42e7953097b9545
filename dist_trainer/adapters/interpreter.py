"""What Python does around our work, made short: importing large libraries, and ending a process that has them."""

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_NOT_FLUSHED = 120  # Python's own code for it


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries in this block: next to nothing in it becomes garbage, and looking for it takes a
    quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave(code: int) -> NoReturn:
    """End the process as sys.exit does, without taking its modules apart: with torch that is half a second.

    What may not be left out comes first: threads that are no daemons, what is registered with atexit, and output.
    """
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # a pipe without a reader, a full disk, none at all
            code = _NOT_FLUSHED if stream is not None else code
    os._exit(code)
