"""Memory that is freed and taken again costs no page faults: the assumption on glibc's mallopt."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(60)
# blocks as of activations, freed and taken again; then the pages that the kernel had to clear at each step
PROGRAM = """
import resource, sys
from dist_trainer.adapters.allocator import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def step():
    blocks = [b"1" * (size << 20) for size in (8, 2, 24, 6, 30)]
    return len(blocks)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def pages_a_step(*words: str, **variables: str) -> float:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(ran.stdout)


def test_freed_blocks_are_taken_again_without_asking_the_kernel() -> None:
    megabyte = (1 << 20) / os.sysconf("SC_PAGE_SIZE")
    assert pages_a_step() > 30 * megabyte, "glibc does so by itself now"
    assert pages_a_step("keep") < megabyte


def test_a_users_own_setting_stays() -> None:
    seventy = 70 * (1 << 20) / os.sysconf("SC_PAGE_SIZE")
    assert pages_a_step("keep", MALLOC_MMAP_THRESHOLD_="65536") >= seventy
