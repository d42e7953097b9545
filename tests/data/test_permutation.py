"""The permutation: a bijection at any length, and as random as a true shuffle where that can be told."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dist_trainer.data.permutation import TABLE_BELOW, Permutation, permute

FEISTEL_LENGTHS = [TABLE_BELOW, 5000, 8191, 8192, 8193, 65_537, 300_001]


def chi_square_is_plausible(counts: NDArray[np.int64], expected: NDArray[np.float64] | float) -> bool:
    """Within five standard deviations of a chi-square with as many degrees of freedom as there are cells."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [*range(1, 70), 1000, *FEISTEL_LENGTHS])
def test_it_is_a_bijection(length: int) -> None:
    order = permute(np.arange(length), length, key=length)
    assert (np.sort(order) == np.arange(length)).all()


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 2**61), key=st.integers(0, 2**64 - 1), data=st.data())
def test_any_stretch_of_any_length_is_distinct_and_in_range(
    length: int, key: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, length - 1))
    positions = np.arange(first, min(length, first + 2000))
    found = permute(positions, length, key)
    assert found.min() >= 0
    assert found.max() < length
    assert len(np.unique(found)) == len(positions)


def test_a_stretch_is_what_the_whole_has_there() -> None:
    whole = permute(np.arange(100_000), 100_000, key=9)
    assert (permute(np.arange(31_000, 64_000), 100_000, key=9) == whole[31_000:64_000]).all()
    assert (permute(np.array([99_999, 0, 5]), 100_000, key=9) == whole[[99_999, 0, 5]]).all()


def test_all_orders_of_four_are_as_frequent() -> None:
    every = {order: number for number, order in enumerate(permutations(range(4)))}
    orders = [every[tuple(permute(np.arange(4), 4, key))] for key in range(24_000)]
    assert chi_square_is_plausible(np.bincount(orders, minlength=24), 1000.0)


@pytest.mark.parametrize("length", [2, 3, 7, 50])
def test_every_element_of_a_short_order_is_at_every_place_as_often(length: int) -> None:
    keys = 400 * length
    orders = np.stack([permute(np.arange(length), length, key) for key in range(keys)])
    counts = np.zeros((length, length), dtype=np.int64)
    np.add.at(counts, (np.tile(np.arange(length), keys), orders.ravel()), 1)
    # rows and columns of the table are fixed: (length - 1)**2 degrees of freedom, not length**2 - 1
    statistic = float(((counts - 400.0) ** 2 / 400.0).sum()) * length / (length - 1)
    freedom = length * (length - 1)
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom) + length


@pytest.mark.parametrize("length", [TABLE_BELOW - 1, *FEISTEL_LENGTHS])
class TestAgainstATrueShuffle:
    """Each statistic has a known distribution under a true shuffle; the keys are fixed, so it never flickers."""

    def test_where_elements_go(self, length: int) -> None:
        counts = np.zeros((32, 32), dtype=np.int64)
        for key in range(20):
            order = permute(np.arange(length), length, key)
            np.add.at(counts, (np.arange(length) * 32 // length, order * 32 // length), 1)
        sizes = np.bincount(np.arange(length) * 32 // length)
        assert chi_square_is_plausible(counts, 20 * np.outer(sizes, sizes) / length)

    def test_what_follows_what(self, length: int) -> None:
        counts = np.zeros((32, 32), dtype=np.int64)
        for key in range(20):
            bins = permute(np.arange(length), length, key) * 32 // length
            np.add.at(counts, (bins[:-1], bins[1:]), 1)
        sizes = np.bincount(np.arange(length) * 32 // length)
        assert chi_square_is_plausible(counts, 20 * np.outer(sizes, sizes) / length)

    def test_how_far_apart_neighbours_are(self, length: int) -> None:
        gaps = np.concatenate(
            [np.diff(permute(np.arange(length), length, key)) % length for key in range(20)]
        )
        counts = np.bincount(gaps * 64 // length, minlength=64)
        sizes = np.bincount(np.arange(1, length) * 64 // length, minlength=64)
        assert chi_square_is_plausible(counts, len(gaps) * sizes / sizes.sum())
        successors = int((gaps == 1).sum())
        assert successors < 20 + 5 * np.sqrt(20)  # one in each order is expected

    def test_the_same_place_and_the_same_pair_under_many_keys(self, length: int) -> None:
        keys = 6400
        pairs = np.stack([permute(np.array([17, 18]), length, key) for key in range(keys)]) * 8 // length
        sizes = np.bincount(np.arange(length) * 8 // length) / length
        counts = np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64)
        assert chi_square_is_plausible(counts, keys * np.outer(sizes, sizes).ravel())

    def test_the_low_bit(self, length: int) -> None:
        low = np.concatenate(
            [permute(np.arange(length), length, key)[: length // 2] & 1 for key in range(20)]
        )
        # half of an order is drawn without replacement: a quarter of the variance, times a half
        assert abs(low.sum() - len(low) / 2) < 5 * np.sqrt(len(low) / 8) + 20

    def test_fixed_points_and_inversions(self, length: int) -> None:
        fixed, rising = 0, 0
        for key in range(20):
            order = permute(np.arange(length), length, key)
            fixed += int((order == np.arange(length)).sum())
            rising += int((np.diff(order) > 0).sum())
        assert fixed < 20 + 5 * np.sqrt(20)
        pairs = 20 * (length - 1)
        assert abs(rising - pairs / 2) < 5 * np.sqrt(pairs / 12) + 20


def test_orders_of_successive_keys_are_unrelated() -> None:
    orders = np.stack([permute(np.arange(10_000), 10_000, key) for key in range(8)])
    correlation = np.corrcoef(orders)
    assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(10_000)


@pytest.mark.parametrize("length", [0, -1, 2**62])
def test_lengths_it_cannot_do_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"n must be from 1 to 2\*\*62 - 1"):
        Permutation(length, 0)
