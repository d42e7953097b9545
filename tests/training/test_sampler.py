"""The sampler: its order, its state and its shares, at any world size, accumulation and epoch length."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dist_trainer.errors import ConfigError, DataError
from dist_trainer.training.sampler import ResumableSampler, sample_keys


class Numbers(Dataset[int]):
    def __init__(self, length: int, **columns: Any) -> None:
        self.length = length
        for name, values in columns.items():
            setattr(self, name, values)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def sampler(length: int, batch: int, *, rank: int = 0, world: int = 1, **options: Any) -> ResumableSampler:
    return ResumableSampler(Numbers(length), global_batch_size=batch, rank=rank, world_size=world, **options)


def group(length: int, batch: int, world: int, **options: Any) -> list[ResumableSampler]:
    return [sampler(length, batch, rank=rank, world=world, **options) for rank in range(world)]


def trained(samplers: list[ResumableSampler], step: int) -> list[int]:
    """What all ranks together train on at a step, in the order of positions."""
    rows = [rows for each in samplers for rows in each.rows(step)]
    positions = np.concatenate([part.positions for part in rows])
    indices = np.concatenate([part.indices for part in rows])
    return indices[np.argsort(positions)].tolist()


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 300),
    batch=st.integers(4, 40),
    world=st.integers(1, 4),
    accumulate=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_sample_of_an_epoch_is_trained_once(
    length: int, batch: int, world: int, accumulate: int, epoch: int
) -> None:
    samplers = group(length, batch, world, accumulate_steps=accumulate, seed=5)
    steps = samplers[0].steps_per_epoch
    assert steps == -(-length // batch)
    seen = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        assert all(len(each.rows(step)) == accumulate for each in samplers)
        rows = trained(samplers, step)
        assert len(rows) == samplers[0].global_rows(step)
        seen += rows
    assert sorted(seen) == list(range(length))


@pytest.mark.parametrize("order", ["shuffled", "sequential", "balanced", "weighted"])
def test_the_order_is_the_same_at_every_world_size(order: str) -> None:
    columns = {"targets": np.arange(103) % 3, "sample_weights": np.arange(103) + 1.0}
    orders = []
    for world in (1, 2, 3, 4):
        samplers = [
            ResumableSampler(
                Numbers(103, **columns),
                global_batch_size=10,
                rank=rank,
                world_size=world,
                seed=3,
                order=order,
                accumulate_steps=world,
            )
            for rank in range(world)
        ]
        orders.append([trained(samplers, step) for step in range(30)])
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert (orders[0][:11] != orders[0][11:22]) == (order != "sequential")


def test_four_ranks_then_two_then_three_in_mid_epoch_train_the_order_of_one() -> None:
    expected = [trained(group(1000, 16, 1), step) for step in range(120)]
    found, state = [], {"epoch": 0, "position": 0}
    for world, steps in ((4, 30), (2, 45), (3, 45)):
        samplers = group(1000, 16, world)
        for each in samplers:
            each.load_state_dict(state)
        first = samplers[0].step
        found += [trained(samplers, step) for step in range(first, first + steps)]
        samplers[0].set_step(first + steps)
        state = samplers[0].state_dict()
    assert found == expected


def test_a_rank_takes_every_world_size_th_position_and_cuts_it_evenly() -> None:
    (rows,) = sampler(100, 12, rank=1, world=3).rows(2)
    assert rows.positions.tolist() == [25, 28, 31, 34]
    parts = sampler(100, 12, rank=1, world=2, accumulate_steps=4).rows(0)
    assert [part.positions.tolist() for part in parts] == [[1, 3], [5, 7], [9], [11]]


def test_a_short_last_batch_leaves_some_ranks_and_micro_batches_empty() -> None:
    samplers = group(13, 6, 3, accumulate_steps=2)
    sizes = [[len(part.indices) for part in each.rows(2)] for each in samplers]
    assert sizes == [[1, 0], [0, 0], [0, 0]]
    assert samplers[0].global_rows(2) == 1


def test_drop_last_leaves_out_the_short_batch() -> None:
    each = sampler(13, 6, drop_last=True)
    assert each.steps_per_epoch == 2
    assert len(each) == 12
    assert len(list(each)) == 12


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(sampler(50, 50, seed=seed).rows(epoch)[0].indices) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 200), batch=st.integers(3, 50), world=st.integers(1, 3), step=st.integers(0, 40))
def test_iterating_from_a_position_yields_the_rest_of_the_epoch(
    length: int, batch: int, world: int, step: int
) -> None:
    for each in group(length, batch, world):
        each.set_step(step)
        assert each.step == step
        last = (step // each.steps_per_epoch + 1) * each.steps_per_epoch
        rest = [int(i) for number in range(step, last) for part in each.rows(number) for i in part.indices]
        assert list(each) == rest
        assert len(each) == len(rest)


def test_a_plain_dataloader_can_use_it_epoch_by_epoch() -> None:
    each = sampler(20, 4, rank=0, world=2)
    epochs = []
    for epoch in range(2):
        each.set_epoch(epoch)
        epochs.append(
            [int(i) for batch in DataLoader(each.dataset, batch_size=2, sampler=each) for i in batch]
        )
    assert all(len(set(rows)) == 10 for rows in epochs)
    assert epochs[0] != epochs[1]


def test_setting_the_epoch_it_is_in_keeps_the_position() -> None:
    each = sampler(100, 10)
    each.set_step(13)
    each.set_epoch(1)
    assert each.state_dict() == {"epoch": 1, "position": 30, "length": 100, "order": "shuffled"}


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next() -> None:
    each = sampler(25, 10)
    each.load_state_dict({"epoch": 0, "position": 25})
    assert (each.epoch, each.step) == (1, 3)


def test_a_position_within_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.global_batch_size is 10, and the saved position 16"):
        sampler(100, 10).load_state_dict({"epoch": 0, "position": 16})


def test_a_billion_samples_take_no_more_memory_than_a_thousand() -> None:
    tracemalloc.start()
    try:
        each = sampler(10**9, 32, rank=1, world=2)
        assert len(each.rows(30_000_000)[0].indices) == 16
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "bytes at most at any time"
    finally:
        tracemalloc.stop()


def test_balanced_order_draws_each_class_as_often() -> None:
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    each = ResumableSampler(
        Numbers(1000, targets=targets), global_batch_size=1000, rank=0, world_size=1, order="balanced"
    )
    drawn = np.concatenate([targets[each.rows(epoch)[0].indices] for epoch in range(30)])
    shares = np.bincount(drawn) / len(drawn)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)


def test_weighted_order_draws_by_weight_and_never_a_weight_of_zero() -> None:
    weights = np.array([0.0, 1, 2, 0, 5, 0])
    each = ResumableSampler(
        Numbers(6), global_batch_size=6, rank=0, world_size=1, order="weighted", weights=weights
    )
    drawn = np.concatenate([each.rows(epoch)[0].indices for epoch in range(4000)])
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert shares == pytest.approx(weights / 8, abs=0.015)
    assert (shares[weights == 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"batch": 1, "world": 2},
            ConfigError,
            "must be at least the world size, 2, got 1; every rank needs",
        ),
        ({"length": 3, "drop_last": True}, ConfigError, "drop_last leaves nothing.*3 rows.*4"),
        ({"length": 0}, DataError, "data.train is empty"),
        ({"order": "balanced"}, ConfigError, "needs data.train to have the attribute `targets`"),
        ({"order": "weighted"}, ConfigError, "needs data.train to have the attribute `sample_weights`"),
        ({"order": "weighted", "weights": [1.0] * 9}, DataError, r"10 finite weights.*shape \(9,\)"),
        ({"order": "weighted", "weights": [0.0] * 10}, DataError, "one above"),
        ({"order": "weighted", "weights": [np.nan] * 10}, DataError, "finite"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sampler(**{"length": 10, "batch": 4} | options)


def test_an_iterable_dataset_is_refused_with_a_remedy() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1])

    with pytest.raises(ConfigError, match=r"data.train is an IterableDataset \(Stream\).*data pack"):
        ResumableSampler(Stream(), global_batch_size=1, rank=0, world_size=1)


def test_targets_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"`targets` must have the shape \(10,\), got \(9,\)"):
        ResumableSampler(
            Numbers(10, targets=[0] * 9), global_batch_size=2, rank=0, world_size=1, order="balanced"
        )


def test_sample_keys_depend_on_seed_epoch_and_position() -> None:
    positions = np.arange(1000)
    keys = np.concatenate([sample_keys(seed, epoch, positions) for seed in range(4) for epoch in range(4)])
    assert len(np.unique(keys)) == len(keys)
    assert (sample_keys(2, 3, positions[100:200]) == sample_keys(2, 3, positions)[100:200]).all()
