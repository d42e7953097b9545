"""The loader: the same batches at any number of workers, right empty ones, bad rows, and nothing left behind."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from dist_trainer.data import InMemory, RandomCrop, RandomFlip
from dist_trainer.data.augment import Normalize
from dist_trainer.data.split import part_of
from dist_trainer.errors import ConfigError, DataError
from dist_trainer.training.batch import Batch, empty_like
from dist_trainer.training.fetch import Fetcher
from dist_trainer.training.loader import EvalLoader, TrainLoader
from dist_trainer.training.sampler import ResumableSampler, Rows
from tests.launchers.processes import wait_for

Pair = namedtuple("Pair", ["x", "note"])


class Noisy(Dataset[Any]):
    """Samples with randomness from all three generators, in a nested structure."""

    def __init__(self, length: int, bad: tuple[int, ...] = ()) -> None:
        self.length = length
        self.bad = bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise ValueError(f"no picture in {index}")
        noise = torch.rand(3) + random.random() + np.random.rand()
        return {"pair": Pair(noise, f"row {index}"), "index": index, "both": (noise[:1], [noise[1:]])}


class Whole(Dataset[Any]):
    """Collated at once, the randomness drawn from the keys."""

    def __init__(self) -> None:
        self.invalid_rows: dict[int, str] = {}

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("batch() is there")

    def batch(self, indices: NDArray[np.int64], keys: NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
        if 13 in indices:
            raise OSError("disk is gone")
        return torch.from_numpy(indices), torch.from_numpy((keys >> np.uint64(11)).astype(np.float64))


class Listed(Noisy):
    calls = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.calls += 1
        return [index * 2 for index in indices]


@contextmanager
def opened(
    dataset: Any, *, batch: int = 8, rank: int = 0, world: int = 1, **options: Any
) -> Iterator[TrainLoader]:
    accumulate_steps = options.pop("accumulate_steps", 1)
    sampler = ResumableSampler(
        dataset,
        global_batch_size=batch,
        rank=rank,
        world_size=world,
        seed=4,
        accumulate_steps=accumulate_steps,
    )
    loader = TrainLoader(dataset, sampler, seed=4, **options)
    try:
        yield loader
    finally:
        loader.close()


def by_row(batches: Iterator[list[Batch]]) -> dict[int, Tensor]:
    rows = {}
    for step in batches:
        for batch in step:
            for place, index in enumerate(batch.data["index"].tolist()):
                rows[index] = batch.data["pair"].x[place]
    return rows


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.timeout(60)
def test_none_and_two_workers_give_the_same_batches_bit_for_bit() -> None:
    found = []
    for num_workers in (0, 2):
        with opened(Noisy(101), rank=1, world=3, num_workers=num_workers, accumulate_steps=2) as loader:
            found.append([[(batch.data, batch.rows) for batch in step] for step in loader.steps(5, 40)])
    assert len(found[0]) == 35
    assert same(found[0], found[1])


def test_a_samples_randomness_is_the_same_at_every_world_size_and_new_in_each_epoch() -> None:
    rows: dict[int, dict[int, Tensor]] = {}
    for world in (1, 3):
        rows[world] = {}
        for rank in range(world):
            with opened(Noisy(40), rank=rank, world=world) as loader:
                rows[world] |= by_row(loader.steps(0, 5))
    assert all(torch.equal(rows[1][index], rows[3][index]) for index in range(40))
    with opened(Noisy(40)) as loader:
        second = by_row(loader.steps(5, 10))
    assert not any(torch.equal(rows[1][index], second[index]) for index in range(40))


def test_a_subset_of_random_samples_is_seeded_sample_by_sample() -> None:
    whole = Subset(Noisy(40), range(40))
    with opened(whole, batch=8) as large, opened(whole, batch=4) as small:
        one, two = by_row(large.steps(0, 5)), by_row(small.steps(0, 10))
    assert all(torch.equal(one[index], two[index]) for index in range(40))


def test_steps_can_start_anywhere() -> None:
    with opened(Noisy(40)) as loader:
        whole = [step[0].data for step in loader.steps(0, 12)]
        assert same(whole[7:], [step[0].data for step in loader.steps(7, 12)])


def test_a_data_set_with_batch_is_fetched_whole_with_a_key_for_each_row() -> None:
    def read(world: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for rank in range(world):
            with opened(Whole(), batch=4, rank=rank, world=world, bad_rows="skip") as loader:
                for (batch,) in loader.steps(0, 13):
                    found |= dict(zip(*(part.tolist() for part in batch.data), strict=True))
        return found

    one = read(1)
    assert sorted(one) == [row for row in range(50) if row != 13]
    assert one == read(3)


class Counted(TensorDataset):
    """Its rows are its own affair."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(2 * part for part in super().__getitem__(index))


def test_the_rows_of_tensors_are_taken_at_once_and_alike() -> None:
    parts = torch.rand(20, 3, 2), torch.arange(20), torch.rand(20, dtype=torch.float64) > 0.5
    rows = Rows(0, np.arange(4), np.array([7, 3, 3, 19]))
    dataset = TensorDataset(*parts)
    told = Fetcher(dataset).fetch(rows)
    expected = default_collate([dataset[index] for index in rows.indices.tolist()])
    assert type(told.data) is type(expected)
    for one, other in zip(told.data, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.equal(Fetcher(Counted(*parts)).fetch(rows).data[0], 2 * expected[0])
    assert Fetcher(dataset, collate=len).fetch(rows).data == 4
    none = Fetcher(dataset).fetch(Rows(0, np.arange(0), np.arange(0)))
    assert [tuple(part.shape) for part in none.data] == [(0, 3, 2), (0,), (0,)]
    with pytest.raises(DataError, match=r"data\.train row 20: IndexError"):
        Fetcher(dataset).fetch(Rows(0, np.arange(2), np.array([1, 20])))


def test_a_data_set_with_getitems_is_asked_once_for_each_batch() -> None:
    dataset = Listed(16)
    with opened(dataset, batch=8) as loader:
        batches = [step[0].data.tolist() for step in loader.steps(0, 2)]
    assert sorted(row for rows in batches for row in rows) == list(range(0, 32, 2))
    assert dataset.calls == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_empty_micro_batches_have_the_structure_of_the_others(num_workers: int) -> None:
    with opened(Noisy(9), rank=2, world=3, num_workers=num_workers, accumulate_steps=2) as loader:
        ((full, _), (empty, other)) = loader.steps(0, 2)
    assert (full.rows, empty.rows, other.rows) == (1, 0, 0)
    assert isinstance(empty.data["pair"], Pair)
    assert empty.data["pair"].x.shape == (0, 3)
    assert list(empty.data["pair"].note) == []
    assert empty.data["index"].shape == (0,)
    assert empty.data["both"][1][0].shape == (0, 2)
    assert empty.data["index"].dtype == full.data["index"].dtype


def test_an_empty_batch_cuts_what_grows_with_the_rows() -> None:
    @dataclass
    class Custom:
        time_major: Tensor
        count: int

    def collated(rows: int) -> Any:
        return {
            "time_major": Custom(torch.zeros(7, rows, 2), rows),
            "constant": torch.ones(4),
            "strings": ["a"] * rows,
            "fields": [torch.zeros(rows), torch.zeros(rows, 5)],
            "array": np.zeros((rows, 2)),
            "name": "train",
            "flag": True,
            "scale": 0.5,
            "nothing": None,
        }

    empty = empty_like(collated(1), collated(2))
    assert empty["time_major"].time_major.shape == (7, 0, 2)
    assert empty["time_major"].count == 0
    assert empty["constant"].tolist() == [1, 1, 1, 1]
    assert empty["strings"] == []
    assert [part.shape for part in empty["fields"]] == [(0,), (0, 5)]
    assert empty["array"].shape == (0, 2)
    assert (empty["name"], empty["flag"], empty["scale"], empty["nothing"]) == ("train", True, 0.5, None)


class Bag:
    """A batch as graph libraries have it: an object of its own, which takes its tensors along."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def to(self, device: torch.device, non_blocking: bool = False) -> "Bag":
        return Bag(self.values.to(device, non_blocking=non_blocking))


def test_a_batch_that_moves_itself_is_made_empty_by_its_own_collate() -> None:
    rows = [torch.ones(3), torch.ones(3)]
    fetcher = Fetcher(rows, collate=lambda bag: Bag(torch.stack(bag) if bag else torch.zeros(0, 3)))
    none = np.empty(0, dtype=np.int64)
    assert fetcher.fetch(Rows(0, none, none)).data.values.shape == (0, 3)
    one_by_one = Fetcher(rows, collate=lambda bag: Bag(torch.stack(bag)))
    with pytest.raises(DataError, match=r"what a Bag of no rows is.*empty list, and raised RuntimeError"):
        one_by_one.fetch(Rows(0, none, none))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_row_is_named_with_its_own_error(num_workers: int) -> None:
    message = "data.train row 17: ValueError: no picture in 17; `data.bad_rows: skip` leaves such rows out"
    with opened(Noisy(40, bad=(17,)), num_workers=num_workers) as loader, pytest.raises(DataError) as caught:
        list(loader.steps(0, 5))
    assert str(caught.value) == message


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_rows_are_reported_and_the_others_unchanged(num_workers: int) -> None:
    with opened(Noisy(40)) as loader:
        expected = by_row(loader.steps(0, 5))
    with opened(Noisy(40, bad=(0, 17, 18)), num_workers=num_workers, bad_rows="skip") as loader:
        steps = list(loader.steps(0, 5))
    found = by_row(iter(steps))
    assert sorted(row for (batch,) in steps for row in batch.bad) == [0, 17, 18]
    assert sum(batch.rows for (batch,) in steps) == 37
    assert all(torch.equal(found[row], expected[row]) for row in found)


def test_a_micro_batch_of_bad_rows_alone_is_empty() -> None:
    dataset = Noisy(8, bad=tuple(range(1, 8)))
    batch = Fetcher(dataset, bad_rows="skip").fetch(Rows(0, np.arange(2), np.array([3, 5])))
    assert (batch.rows, batch.bad, batch.data["index"].shape) == (0, [3, 5], (0,))


def test_known_invalid_rows_are_refused_or_skipped() -> None:
    dataset = Whole()
    dataset.invalid_rows = {4: "its input holds a number that is not finite"}
    rows = Rows(0, np.arange(3), np.array([2, 4, 6]))
    with pytest.raises(
        DataError, match=r"data.train row 4: its input holds a number that is not finite; `data"
    ):
        Fetcher(dataset).fetch(rows)
    batch = Fetcher(dataset, bad_rows="skip").fetch(rows)
    assert (batch.rows, batch.bad, batch.data[0].tolist()) == (2, [4], [2, 6])


def test_rows_that_cannot_be_put_together_are_named() -> None:
    class Uneven(Noisy):
        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(index)

    with pytest.raises(
        DataError, match=r"rows 1, 2 can each be read, but not put into one batch: RuntimeError"
    ):
        Fetcher(Uneven(5), bad_rows="skip").fetch(Rows(0, np.arange(2), np.array([1, 2])))


def test_a_collate_of_the_users_own_is_called() -> None:
    with opened(Noisy(8), collate=lambda samples: [sample["index"] for sample in samples]) as loader:
        assert sorted(next(loader.steps(0, 1))[0].data) == list(range(8))


def test_iterable_data_sets_are_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1])

    with pytest.raises(ConfigError, match=r"data.val is an IterableDataset"):
        EvalLoader(Stream(), rank=0, world_size=1, batch_size=1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_an_evaluation_reads_every_row_once_and_always_alike(world: int, num_workers: int) -> None:
    every: dict[int, Tensor] = {}
    for rank in range(world):
        loader = EvalLoader(
            Noisy(101), rank=rank, world_size=world, batch_size=8, num_workers=num_workers if rank < 2 else 0
        )
        loader.start()
        first, second = ([(i, b.data["pair"].x) for i, b in loader] for _ in range(2))
        loader.close()
        assert same([x for _, x in first], [x for _, x in second])
        assert [i.tolist() for i, _ in first] == [i.tolist() for i, _ in second]
        for indices, x in first:
            every |= dict(zip(indices.tolist(), x, strict=True))
    assert sorted(every) == list(range(101))
    alone = EvalLoader(Noisy(101), rank=0, world_size=1, batch_size=101)
    ((indices, batch),) = list(alone)
    assert all(torch.equal(every[row], batch.data["pair"].x[row]) for row in indices.tolist())


def test_an_evaluation_reports_the_rows_it_read_without_the_bad_ones() -> None:
    loader = EvalLoader(Noisy(7, bad=(2,)), rank=0, world_size=2, batch_size=3, bad_rows="skip")
    assert [(i.tolist(), b.rows, b.bad) for i, b in loader] == [([0, 4], 2, [2]), ([6], 1, [])]


def test_a_rank_beyond_the_last_row_gets_nothing() -> None:
    loader = EvalLoader(Noisy(2), rank=2, world_size=3, batch_size=4, num_workers=2)
    assert len(loader) == 0
    assert list(loader) == []


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def started(before: set[psutil.Process]) -> list[psutil.Process]:
    """This process's children since then; a forkserver of other tests may be one from before."""
    return sorted(children() - before, key=lambda process: process.pid)


def test_reading_here_leaves_no_worker() -> None:
    before = children()
    with opened(Noisy(40)) as loader:
        list(loader.steps(0, 5))
        assert not started(before)


@pytest.mark.timeout(60)
def test_workers_ignore_the_signals_that_stop_a_run() -> None:
    before = children()
    with opened(Noisy(400), num_workers=2) as loader:
        steps = loader.steps(0, 50)
        next(steps)
        workers = started(before)
        assert len(workers) == 2
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            for worker in workers:
                worker.send_signal(number)
        assert len(list(steps)) == 49
    assert not started(before)


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_is_a_data_error() -> None:
    class Slow(Noisy):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.02)
            return super().__getitem__(index)

    before = children()
    with (
        opened(Slow(400), num_workers=1) as loader,
        pytest.raises((DataError, RuntimeError), match=r"worker \(pid"),
    ):
        steps = loader.steps(0, 50)
        next(steps)
        started(before)[0].kill()
        list(steps)


SCRIPT = """
import os, sys, time, torch
from torch.utils.data import Dataset
from dist_trainer.training.loader import TrainLoader
from dist_trainer.training.sampler import ResumableSampler

class Stuck(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index == 50:
            time.sleep(600)
        return index

sampler = ResumableSampler(Stuck(), global_batch_size=100, rank=0, world_size=1)
steps = TrainLoader(Stuck(), sampler, num_workers=2).steps(0, 10)
print(os.getpid(), flush=True)
END
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "end",
    ["time.sleep(600)", "sys.exit(0)", "raise SystemExit(3)", "os._exit(0)"],
    ids=["killed", "exit", "error", "at once"],
)
def test_stuck_workers_die_with_their_parent(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("END", f"time.sleep(1)\n{end}"))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 2)
        workers = psutil.Process(process.pid).children()
        if "600" in end:
            process.kill()
        process.wait(timeout=20)
        wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


@pytest.mark.timeout(60)
def test_workers_compute_on_one_thread() -> None:
    class Threads(Noisy):
        def __getitem__(self, index: int) -> Any:
            return torch.get_num_threads(), os.getpid()

    with opened(Threads(8), num_workers=1) as loader:
        ((batch,),) = loader.steps(0, 1)
    threads, processes = batch.data
    assert threads.unique().tolist() == [1]
    assert os.getpid() not in processes.tolist()


class Opened(Noisy):
    """Opened at its first read, as a file would be."""

    opened_by = 0

    def __getitem__(self, index: int) -> Any:
        self.opened_by = self.opened_by or os.getpid()
        return super().__getitem__(index)


def test_a_step_read_apart_is_the_same_and_opens_nothing_here() -> None:
    dataset, before = Opened(40), children()
    sampler = ResumableSampler(dataset, global_batch_size=4, rank=0, world_size=1, seed=1)
    loader = TrainLoader(dataset, sampler, num_workers=2)
    apart = loader.read_apart(3)
    assert dataset.opened_by == 0
    here = loader.read(3)
    assert [batch.rows for batch in apart] == [batch.rows for batch in here]
    assert all(
        torch.equal(one.data["index"], two.data["index"]) for one, two in zip(apart, here, strict=True)
    )
    assert not started(before)


class Unsendable(Noisy):
    """Rows that no process can give to another."""

    def __getitem__(self, index: int) -> Any:
        return {"index": index, "made": lambda: index}


@pytest.mark.timeout(30)
def test_a_batch_that_cannot_be_sent_is_an_error_and_no_wait_without_end() -> None:
    dataset = Unsendable(40)
    sampler = ResumableSampler(dataset, global_batch_size=4, rank=0, world_size=1, seed=1)
    loader = TrainLoader(dataset, sampler, num_workers=1, collate=list)
    with pytest.raises(DataError, match="a loader process"):
        next(loader.steps(0, 4))
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_device_can_do_is_left_to_it_and_gives_the_same(num_workers: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (23, 3, 8, 8), dtype=np.uint8)
    data = InMemory(
        images,
        np.arange(23),
        augment=[RandomCrop(2), RandomFlip()],
        normalize=Normalize([0.1, 0.2, 0.3], 0.5),
    )
    for dataset in (data, part_of(data, np.arange(3, 23))):
        each = ResumableSampler(dataset, global_batch_size=7, rank=0, world_size=1)
        loaders = [
            TrainLoader(dataset, each, num_workers=num_workers, finish_later=late) for late in (True, False)
        ]
        try:
            for (late,), (early,) in zip(*(loader.steps(0, 4) for loader in loaders), strict=True):
                assert late.data[0].dtype == torch.uint8 and early.data[0].dtype == torch.float32
                done = late.on(torch.device("cpu"))
                assert done.finish is None and done.rows == early.rows == len(early.data[0])
                for one, other in zip(done.data, early.data, strict=True):
                    assert torch.equal(one, other)
        finally:
            for loader in loaders:
                loader.close()
        none = loaders[0]._fetcher.fetch(Rows(0, np.arange(0), np.arange(0)))
        assert none.finish is None, "no augmentation is asked what it makes of nothing"
        assert [len(part) for part in none.on(torch.device("cpu")).data] == [0, 0]


def test_an_augmentation_that_works_on_the_cpu_alone_is_done_there() -> None:
    def inverted(images: Tensor, keys: Any, stream: int) -> Tensor:
        return 255 - images

    data = InMemory(np.zeros((4, 1, 2, 2), dtype=np.uint8), np.arange(4), augment=[inverted])
    batch = Fetcher(data, finish_later=True).fetch(Rows(0, np.arange(2), np.arange(2)))
    assert batch.finish is None and batch.data[0].eq(1.0).all()


class Relabelled(InMemory):
    """Has a batch of its own."""

    def batch(self, indices: NDArray[np.int64], keys: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices, keys)
        return inputs, targets + 100


def test_a_subclass_with_a_batch_of_its_own_is_asked_for_it_on_every_device() -> None:
    data = Relabelled(np.zeros((9, 1, 2, 2), dtype=np.uint8), np.arange(9))
    for dataset in (data, part_of(data, np.arange(9))):
        batch = Fetcher(dataset, finish_later=True).fetch(Rows(0, np.arange(2), np.arange(2)))
        assert batch.finish is None and batch.data[1].tolist() == [100, 101]
