"""Loader processes: waits that can be broken off, quick ends, and a fork that touches nothing of the parent's."""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from dist_trainer.errors import DataError
from dist_trainer.training.fetch import ReadInterrupted
from dist_trainer.training.loader import TrainLoader
from dist_trainer.training.sampler import ResumableSampler

pytestmark = pytest.mark.timeout(60)


class Slow(Dataset[int]):
    """Its own row numbers, each after a wait."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        self.begun += 1
        time.sleep(self.seconds)
        return index


@contextmanager
def opened(dataset: Any, num_workers: int, **options: Any) -> Iterator[TrainLoader]:
    sampler = ResumableSampler(dataset, global_batch_size=4, rank=0, world_size=1, order="sequential")
    loader = TrainLoader(dataset, sampler, num_workers=num_workers, **options)
    try:
        yield loader
    finally:
        loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_slower_than_the_look_at_requests_come_in_order(num_workers: int) -> None:
    asked = []
    with opened(Slow(0.1), num_workers) as loader:
        steps = loader.steps(0, 3, interrupted=lambda: bool(asked.append(1)))
        assert [batch.data.tolist() for (batch,) in steps] == [
            list(range(first, first + 4)) for first in (0, 4, 8)
        ]
    assert len(asked) >= 6


@pytest.mark.parametrize("bad_rows", ["raise", "skip"])
def test_a_wait_for_rows_is_broken_off_after_the_one_being_read(bad_rows: str) -> None:
    dataset = Slow(0.2)
    with opened(dataset, 0, bad_rows=bad_rows) as loader:
        with pytest.raises(ReadInterrupted):
            next(loader.steps(0, 3, interrupted=lambda: dataset.begun == 2))
        assert dataset.begun == 2


@pytest.mark.parametrize("bad_rows", ["raise", "skip"])
def test_a_wait_for_workers_is_broken_off_and_nobody_waits_for_their_rows(bad_rows: str) -> None:
    with opened(Slow(600), 2, bad_rows=bad_rows) as loader:
        began = time.monotonic()
        with pytest.raises(ReadInterrupted):
            next(loader.steps(0, 3, interrupted=lambda: time.monotonic() - began > 0.3))


def test_a_row_that_fails_is_still_named_where_waits_can_be_broken_off() -> None:
    class Broken(Slow):
        def __getitem__(self, index: int) -> int:
            raise OSError(f"no row {index}")

    with opened(Broken(0.0), 2) as loader, pytest.raises(DataError, match="no row 0"):
        list(loader.steps(0, 3, interrupted=bool))


def test_the_parents_garbage_is_not_collected_in_a_loader_process(tmp_path: Path) -> None:
    parent = os.getpid()

    class Dangerous:
        """Like a process group, whose threads are not there after a fork."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if os.getpid() != parent:
                (tmp_path / "collected").touch()

    class Collecting(Slow):
        def __getitem__(self, index: int) -> int:
            gc.collect()
            return index

    gc.disable()
    try:
        Dangerous()
        with opened(Collecting(0.0), 1) as loader:
            list(loader.steps(0, 2))
            assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()
    assert not (tmp_path / "collected").exists()
