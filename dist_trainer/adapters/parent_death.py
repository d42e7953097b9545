"""The kernel's promise that a process does not outlive its parent (Linux)."""

import ctypes
import os
import signal

AGENT_PID_VARIABLE = "DIST_TRAINER_AGENT_PID"  # tells the forkserver who its parent is, or was
_PR_SET_PDEATHSIG = 1


def kill_me_with_my_parent(*, parent_pid: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """Get this signal when the parent dies; at once where `parent_pid` is given and already gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), number)
