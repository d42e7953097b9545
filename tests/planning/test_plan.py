"""What is predicted for each number of nodes, from a measurement that is made up."""

from dataclasses import replace

import pytest

from dist_trainer.errors import UsageError
from dist_trainer.planning.assumptions import Given
from dist_trainer.planning.measurement import Spent
from dist_trainer.planning.plan import Forecast, Plan, saves_every_s
from dist_trainer.planning.trial import sizes_to_measure
from tests.planning.measurements import CONFIG, MEASURED, THOUSAND, changed, phases, planned, with_two_sizes


def forecasts(plan: Plan) -> list[Forecast]:
    return [found for _, found in plan.forecasts]


def test_one_rank_alone_is_what_was_measured() -> None:
    (found,) = forecasts(planned(1, workers=1))
    assert found.step_s == pytest.approx(0.09) and found.exposed_s == found.communication_s == 0
    assert found.efficiency == pytest.approx(1) and found.samples_per_s == pytest.approx(16 / 0.09)


def test_the_global_batch_grows_with_the_ranks_and_each_keeps_its_rows() -> None:
    plan = planned(1, 2, 4)
    assert [(row.ranks, row.rank_rows, row.global_batch) for row in plan.rows] == [
        (2, 16, 32),
        (4, 16, 64),
        (8, 16, 128),
    ]
    assert [found.steps_per_epoch for found in forecasts(plan)] == [31250, 15625, 7813]
    whole = planned(4, config=changed(CONFIG, "data", drop_last=True))
    assert forecasts(whole)[0].steps_per_epoch == 7812


def test_more_nodes_never_wait_less_and_efficiency_only_falls() -> None:
    found = forecasts(planned(*THOUSAND))
    assert [each.exposed_s for each in found] == sorted(each.exposed_s for each in found)
    assert [each.efficiency for each in found] == sorted((each.efficiency for each in found), reverse=True)
    assert all(0 < each.useful <= each.efficiency <= 1 for each in found)


def test_a_faster_network_helps_and_gradients_go_in_buckets_of_the_configured_size() -> None:
    (slow,), (fast,) = forecasts(planned(8, bandwidth_gb_s=1)), forecasts(planned(8, bandwidth_gb_s=100))
    assert slow.exposed_s > 10 * fast.exposed_s
    small = changed(CONFIG, "ddp", bucket_cap_mb=5.0)
    assert [len(planned(8, config=each).buckets) for each in (CONFIG, small)] == [4, 17]


def test_a_kept_global_batch_is_shared_out_until_ranks_have_no_row() -> None:
    plan = planned(1, 2, 6, 16, 17, keeps_global_batch=True, measured=with_two_sizes())
    assert [(row.rank_rows, row.global_batch) for row in plan.rows[:4]] == [
        (16, 32),
        (8, 32),
        (3, 32),
        (1, 32),
    ]
    steps = [found.compute_s for found in forecasts(plan)]
    assert steps == pytest.approx([0.09, 0.02 + 0.035, 0.02 + 0.07 * 3 / 16, 0.02 + 0.07 / 16])
    last = plan.rows[-1]
    assert last.forecast is None and last.note == "34 ranks have no row each in a step of 32"


def test_the_line_through_two_sizes_is_not_led_astray_by_noise() -> None:
    noisy = replace(MEASURED, phases=[phases(16, 0.01, 0.02, 0.05, 0.01), phases(4, 0.02, 0.0, 0.001, 0.01)])
    one, many = noisy.compute(1), noisy.compute(160)
    assert one.between_s == many.between_s == 0.01, "fewer rows do not take longer"
    assert min(one.forward_s, one.backward_s) > 0, "nor less than no time"
    assert many.forward_s == pytest.approx(0.2)
    assert MEASURED.compute(16).total_s == pytest.approx(0.09)


def test_ranks_that_share_a_core_take_turns_on_it_and_sleep_at_once() -> None:
    assert Spent(0.09, 0.05).shared(2, 2) == Spent(0.09, 0.05).shared(8, None) == 0.09, "each has its own"
    assert Spent(0.09, 0.0).shared(8, 2) == 0.09, "who only sleeps needs no core"
    assert Spent(0.05, 0.05).shared(8, 2) == pytest.approx(8 / 2 * 0.05, rel=0.02), (
        "who never sleeps waits always"
    )
    assert Spent(0.05, 0.05).shared(4, 2) == pytest.approx(4 / 2 * 0.05, rel=0.02)
    some = Spent(0.09, 0.05).shared(8, 2)
    assert 8 * 0.05 / 2 < some < 0.04 + 8 * 0.05 / 2, "all cores are busy, and not all ranks queue at once"
    assert Spent(0.1, 0.001).shared(8, 2) == pytest.approx(0.1, rel=0.01), "who needs little hardly waits"
    on_cpus = replace(MEASURED, device="cpu")
    (two,), (eight,) = (forecasts(planned(1, workers=each, measured=on_cpus)) for each in (2, 8))
    assert (two.compute_s, eight.compute_s) == pytest.approx((0.09, 4 * 0.09), rel=0.02)


def test_two_sizes_are_measured_only_where_others_are_asked_for() -> None:
    assert sizes_to_measure(16, is_any_asked=True) == [16, 4]
    assert sizes_to_measure(16, is_any_asked=False) == sizes_to_measure(16, is_any_asked=False) == [16]
    assert sizes_to_measure(1, is_any_asked=True) == [1]


def test_saves_come_by_steps_or_minutes_whichever_is_first() -> None:
    assert saves_every_s(CONFIG.checkpoint, 0.1) == 50
    assert saves_every_s(CONFIG.checkpoint, 10) == 600
    rarely = changed(CONFIG, "checkpoint", every_minutes=None, every_steps=10**6).checkpoint
    assert saves_every_s(rarely, 10) == 3600, "checkpoint.max_staleness_minutes"


def test_the_best_interval_loses_least_and_no_save_begins_before_the_last_is_written() -> None:
    for found in forecasts(planned(*THOUSAND, failures_per_node_year=20)):
        assert found.saves.lost_at_best <= found.saves.lost_as_configured + 1e-9
    often = forecasts(planned(1, config=changed(CONFIG, "checkpoint", every_steps=1)))[0].saves
    assert often.every_s == 2.0


def test_nodes_that_never_fail_need_no_save_and_lose_nothing() -> None:
    (found,) = forecasts(planned(4, failures_per_node_year=0))
    assert found.saves.mtbf_s is None and found.saves.best_every_s is None
    assert found.saves.lost_at_best == 0 and found.useful == found.efficiency


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bandwidth_gb_s": 0}, "--bandwidth must be more than 0 GB/s, got 0"),
        ({"local_bandwidth_gb_s": -1}, "--local-bandwidth must be more than 0 GB/s, got -1"),
        ({"latency_us": -1}, "--latency must be 0 microseconds or more, got -1"),
        ({"failures_per_node_year": -2}, "--failures must be 0 failures per node and year or more, got -2"),
        ({"restart_s": -2}, "--restart must be 0 seconds or more, got -2"),
    ],
)
def test_what_no_network_can_be_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Given(**given)
