"""The cluster for a test: skipped where none answers, idle before and after, nothing of a job left.

A test that uses the fixture `cluster` is marked `slurm`, so that `make test` leaves it out.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import (
    NEEDED,
    Cluster,
    alone,
    end_job_processes,
    job_processes,
    queue,
    wait_for,
    why_not_usable,
)

_IDLE_S = 60.0  # what others have on the cluster may take that long to end


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses the cluster, before pytest looks at the marks."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for other test runs before the time-out of a test begins to count."""
    if item.get_closest_marker("slurm") is None or os.geteuid() != 0:
        return (yield)
    with alone(print):
        return (yield)


@pytest.fixture(scope="session")
def _why_not_usable() -> str | None:
    return why_not_usable()


@pytest.fixture
def cluster(_why_not_usable: str | None, tmp_path: Path) -> Iterator[Cluster]:
    """Two idle nodes; whatever the test leaves running is ended, and a process that stays fails the test."""
    if _why_not_usable:
        give_up = pytest.fail if os.environ.get(NEEDED) else pytest.skip
        give_up(_why_not_usable)
    _wait_until_idle()
    found = Cluster(tmp_path)
    try:
        yield found
    finally:
        found.clean_up()
    _wait_until_idle()


def _wait_until_idle() -> None:
    wait_for(lambda: not queue(), timeout_s=_IDLE_S, what=lambda: "the queue to be empty")
    try:
        wait_for(
            lambda: not job_processes(),
            timeout_s=15,
            what=lambda: f"jobs' processes to end: {job_processes()}",
        )
    finally:
        end_job_processes()
