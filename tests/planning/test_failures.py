"""Young's and Daly's intervals, against the interval that a search finds best."""

import math

import pytest

from dist_trainer.planning.failures import (
    YEAR_S,
    best_interval_s,
    lost_share,
    mean_time_between_failures_s,
    young_interval_s,
)

DAY_S = 86400.0


def searched_interval_s(save_s: float, mtbf_s: float) -> float:
    """By golden-section search on the logarithm: the share has one minimum."""
    low, high, golden = math.log(save_s / 100), math.log(100 * mtbf_s), (math.sqrt(5) - 1) / 2

    def lost(logarithm: float) -> float:
        return lost_share(math.exp(logarithm), save_s=save_s, restart_s=0, mtbf_s=mtbf_s)

    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if lost(left) < lost(right) else (left, high)
    return math.exp((low + high) / 2)


def test_nodes_fail_independently() -> None:
    assert mean_time_between_failures_s(2.0, 1) == YEAR_S / 2
    assert mean_time_between_failures_s(2.0, 100) == pytest.approx(YEAR_S / 200)
    assert math.isinf(mean_time_between_failures_s(0, 100))


def test_youngs_interval_by_hand() -> None:
    assert young_interval_s(50, 10_000) == 1000


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(1, DAY_S), (60, DAY_S), (600, DAY_S), (600, 3600)])
def test_the_best_interval_is_the_one_that_a_search_finds(save_s: float, mtbf_s: float) -> None:
    searched_s = searched_interval_s(save_s, mtbf_s)
    assert best_interval_s(save_s, mtbf_s) == pytest.approx(searched_s, rel=0.01)


def test_where_saves_are_short_young_and_daly_agree_and_where_not_daly_is_closer() -> None:
    assert best_interval_s(1, 30 * DAY_S) == pytest.approx(young_interval_s(1, 30 * DAY_S), rel=1e-3)
    searched_s = searched_interval_s(1200, 3600)
    assert abs(best_interval_s(1200, 3600) - searched_s) < abs(young_interval_s(1200, 3600) - searched_s) / 5


def test_a_save_that_takes_as_long_as_there_is_between_failures_is_made_once_between_them() -> None:
    assert best_interval_s(500, 200) == 200


def test_the_share_lost_is_the_first_order_sum_where_failures_are_rare() -> None:
    """Saves, half an interval done again, and a restart."""
    lost = lost_share(1000, save_s=10, restart_s=120, mtbf_s=100 * DAY_S)
    assert lost == pytest.approx(10 / 1010 + (1000 / 2 + 120) / (100 * DAY_S), rel=0.01)


def test_without_failures_only_saves_cost_and_fewer_are_better() -> None:
    assert lost_share(90, save_s=10, restart_s=120, mtbf_s=math.inf) == 0.1
    assert math.isinf(best_interval_s(10, math.inf))
    assert lost_share(math.inf, save_s=10, restart_s=120, mtbf_s=math.inf) == 0


def test_what_never_gets_anywhere_loses_everything() -> None:
    assert lost_share(1e9, save_s=1, restart_s=1, mtbf_s=1) == 1
    assert lost_share(math.inf, save_s=1, restart_s=1, mtbf_s=100) == 1
