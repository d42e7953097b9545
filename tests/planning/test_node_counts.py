"""Numbers of nodes as they are typed, and the one message for what is none."""

import pytest

from dist_trainer.errors import UsageError
from dist_trainer.planning.node_counts import USUAL, parse_node_counts


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4", [4]),
        ("1,2,8", [1, 2, 8]),
        (" 1, 2 ,8 ", [1, 2, 8]),
        (USUAL, [2**power for power in range(11)]),
        ("1,2,4,…,16", [1, 2, 4, 8, 16]),
        ("1,3,9,...,81", [1, 3, 9, 27, 81]),
        ("1,2,3,...,6", [1, 2, 3, 4, 5, 6]),
        ("8,16,24,...,48", [8, 16, 24, 32, 40, 48]),
        ("2,4,8,16,...,64", [2, 4, 8, 16, 32, 64]),
    ],
)
def test_dots_go_on_by_one_factor_or_one_sum(text: str, numbers: list[int]) -> None:
    assert parse_node_counts(text) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no number from 1 to 1,000,000"),
        ("1,two", "'two' is no number"),
        ("0,1", "'0' is no number"),
        ("-1", "'-1' is no number"),
        ("1.5", "'1.5' is no number"),
        ("1000001", "'1000001' is no number"),
        ("2,1", "each number must be larger than the one before"),
        ("1,1", "each number must be larger than the one before"),
        ("1,2,...,8", "dots stand between three numbers or more and the last one"),
        ("1,2,4,...", "dots stand between three numbers or more and the last one"),
        ("1,2,4,...,8,16", "dots stand between three numbers or more and the last one"),
        ("...,4", "dots stand between three numbers or more and the last one"),
        ("1,2,5,...,8", "numbers must rise by one factor, or by one sum"),
        ("4,2,1,...,8", "numbers must rise by one factor, or by one sum"),
        ("3,3,3,...,8", "numbers must rise by one factor, or by one sum"),
        ("1,2,4,...,1000", "going on from 1, 2, 4 does not come to 1000"),
        ("1,2,3,...,2", "going on from 1, 2, 3 does not come to 2"),
        ("2,4,6,...,9", "going on from 2, 4, 6 does not come to 9"),
        ("1,2,3,...,1000", "these are more than 100 numbers"),
    ],
)
def test_anything_else_is_one_message_with_what_was_found_and_why(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_node_counts(text)
    message = str(refused.value)
    assert message.startswith(f"--nodes must be numbers of nodes such as {USUAL} or 8,16,32, got {text!r}: ")
    assert why in message and "\n" not in message
