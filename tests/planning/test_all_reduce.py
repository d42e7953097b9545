"""The cost of an all-reduce, against cases worked out by hand and against its limits."""

import pytest

from dist_trainer.planning.all_reduce import (
    Algorithm,
    Cluster,
    Link,
    Network,
    all_reduce_s,
    broadcast_s,
    ring_s,
    tree_s,
)

BETWEEN, WITHIN = Link(1.0, 100), Link(10.0, 10)
MB = 1e6


def cluster(nodes: int, workers: int = 1, algorithm: Algorithm = "auto", within: Link = WITHIN) -> Cluster:
    return Cluster(nodes, workers, Network(BETWEEN, within, algorithm))


@pytest.mark.parametrize("cost", [ring_s, tree_s, all_reduce_s, broadcast_s])
def test_one_rank_sends_nothing(cost: object) -> None:
    assert callable(cost) and cost(100 * MB, cluster(1)) == 0.0


def test_a_ring_of_four_nodes_takes_six_steps_with_a_quarter_each() -> None:
    assert ring_s(8 * MB, cluster(4)) == pytest.approx(6 * (100e-6 + 2 * MB / 1e9))


def test_a_ring_over_two_nodes_of_two_crosses_between_them_twice() -> None:
    """Six steps: two with the latency between nodes, four with that within; all at the slower link's rate."""
    assert ring_s(8 * MB, cluster(2, 2)) == pytest.approx(2 * 100e-6 + 4 * 10e-6 + 1.5 * 8 * MB / 1e9)


def test_a_ring_within_a_node_uses_its_own_link() -> None:
    assert ring_s(8 * MB, cluster(1, 4)) == pytest.approx(6 * 10e-6 + 1.5 * 8 * MB / 10e9)


def test_ranks_that_share_memory_and_cores_wait_for_their_turn() -> None:
    shared = Link(10.0, 10, shared_cores=2)
    assert ring_s(8 * MB, cluster(1, 2, within=shared)) == pytest.approx(2 * 10e-6 + 2 * 8 * MB / 10e9)
    eight = 14 * 4 * 10e-6 + 14 * 8 * MB / 10e9  # four times as many ranks as cores
    assert ring_s(8 * MB, cluster(1, 8, within=shared)) == pytest.approx(eight)


def test_a_tree_of_eight_nodes_goes_three_up_and_three_down_with_all_bytes() -> None:
    assert tree_s(8 * MB, cluster(8)) == pytest.approx(6 * 100e-6 + 2 * 8 * MB / 1e9)
    assert tree_s(8 * MB, cluster(8, 3)) == pytest.approx(6 * 100e-6 + 4 * 10e-6 + 2 * 8 * MB / 1e9)


def test_a_ring_comes_as_close_as_can_be_to_the_bandwidth_for_large_sums() -> None:
    for nodes in (2, 16, 64):
        at_least_s = 2 * (nodes - 1) / nodes * 1e11 / 1e9
        assert ring_s(1e11, cluster(nodes)) == pytest.approx(at_least_s, rel=1e-3)
        assert ring_s(1e11, cluster(nodes)) < tree_s(1e11, cluster(nodes))


def test_a_tree_is_better_for_small_sums_and_many_nodes_and_auto_takes_it() -> None:
    many = cluster(1024)
    assert tree_s(1000, many) < ring_s(1000, many) / 50
    assert all_reduce_s(1000, many) == tree_s(1000, many)
    assert all_reduce_s(1000, cluster(1024, algorithm="ring")) == ring_s(1000, many)
    assert all_reduce_s(1e11, cluster(16)) == ring_s(1e11, cluster(16))


def test_a_broadcast_takes_one_round_for_each_doubling() -> None:
    assert broadcast_s(MB, cluster(8)) == pytest.approx(3 * (100e-6 + MB / 1e9))
    assert broadcast_s(0, cluster(8)) == 0.0
