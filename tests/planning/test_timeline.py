"""DDP's buckets and their overlap with backward, against timelines drawn by hand."""

import pytest

from dist_trainer.planning.timeline import (
    Bucket,
    Compute,
    Gradient,
    fill_buckets,
    in_order_of_backward,
    step_of,
)

COMPUTE = Compute(between_s=1.0, forward_s=2.0, backward_s=4.0, update_s=1.0)
FOUR = [Bucket(10, share) for share in (0.25, 0.5, 0.75, 1.0)]


def test_a_bucket_is_closed_by_the_gradient_that_fills_it() -> None:
    gradients = [Gradient(6, 0.2), Gradient(6, 0.4), Gradient(30, 0.6), Gradient(1, 0.9)]
    assert fill_buckets(gradients, cap_bytes=10) == [Bucket(12, 0.4), Bucket(30, 0.6), Bucket(1, 0.9)]


def test_the_first_bucket_may_be_smaller() -> None:
    found = fill_buckets([Gradient(6, each / 4) for each in (1, 2, 3, 4)], cap_bytes=18, first_cap_bytes=5)
    assert found == [Bucket(6, 0.25), Bucket(18, 1.0)]


def test_gradients_nobody_timed_are_spread_by_their_bytes() -> None:
    assert in_order_of_backward([1, 1, 2]) == [Gradient(1, 0.25), Gradient(1, 0.5), Gradient(2, 1.0)]


def test_of_short_all_reduces_only_the_last_is_waited_for() -> None:
    step = step_of(COMPUTE, FOUR, lambda size: 0.5)
    assert (step.total_s, step.exposed_s, step.communication_s) == (8.5, 0.5, 2.0)


def test_long_all_reduces_run_one_after_another_from_the_first_full_bucket_on() -> None:
    step = step_of(COMPUTE, FOUR, lambda size: 3.0)
    assert step.exposed_s == 1 + 4 * 3 - 4
    assert step.total_s == COMPUTE.total_s + step.exposed_s


def test_an_all_reduce_waits_for_a_late_bucket() -> None:
    late = [Bucket(10, 0.25), Bucket(10, 1.0)]
    assert step_of(COMPUTE, late, lambda size: 1.0).exposed_s == 1.0


def test_a_long_backward_hides_all_but_the_last_bucket() -> None:
    long = Compute(0, 0, 1000.0, 0)
    step = step_of(long, FOUR, lambda size: size / 100)
    assert step.exposed_s == pytest.approx(0.1) and step.communication_s == pytest.approx(0.4)


def test_without_communication_a_step_is_its_compute() -> None:
    assert step_of(COMPUTE, FOUR, lambda size: 0.0).total_s == COMPUTE.total_s == 8.0


def test_only_the_last_micro_batch_hides_anything_and_each_broadcasts_its_buffers() -> None:
    halves = Compute(1.0, 2.0, 4.0, 1.0, micro_batches=2)
    step = step_of(halves, FOUR, lambda size: 1.0, broadcast_s=0.125)
    assert step.exposed_s == pytest.approx(0.5 + 4 * 1.0 - 2.0 + 2 * 0.125)
