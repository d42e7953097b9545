"""What the C library does with memory that is freed: a training takes the same again at the next step.

glibc gives large blocks back to the kernel as soon as they are free, which then has to clear the pages that the next
step takes: up to a sixth of the time of a small network's step on a CPU (mallopt(3): M_MMAP_THRESHOLD,
M_TRIM_THRESHOLD).
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_ON_HEAP = 32 << 20  # bytes; glibc takes no more
_KEPT = 2**31 - 1  # bytes at the heap's end; mallopt takes an int
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 32 MiB for what this process allocates next; a user's own settings stay."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is None or any(name in os.environ for name in _USERS_OWN):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    mallopt(_TRIM_THRESHOLD, _KEPT)
