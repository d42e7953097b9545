"""Numbers named in few words."""

from dist_trainer.spans import ranges, spans


def test_numbers_that_follow_each_other_are_one_span_in_whatever_order_they_come() -> None:
    assert spans([3, 0, 1, 7, 2, 3]) == [(0, 3), (7, 7)]
    assert spans([]) == []


def test_three_in_a_row_are_a_range_and_two_are_not() -> None:
    assert ranges([7, 3, 5, 4, 6, 1, 0]) == "0, 1, 3-7"
    assert ranges(range(2)) == "0, 1"
    assert ranges({5}) == "5"
