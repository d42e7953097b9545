"""Which of several deaths is the cause."""

from typing import Any

import pytest

from dist_trainer.errors import (
    FencedOut,
    NonFiniteError,
    NoProgress,
    NotSaved,
    NoUsableCheckpoint,
    StorageError,
)
from dist_trainer.launchers.failures import Failure, first_failure
from dist_trainer.run_folder import RunFolder

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:16288.")
KILLED = -9


def died(run: RunFolder, *errors: tuple[int, BaseException], codes: dict[int, int], step: int = 3) -> Failure:
    for rank, error in errors:
        code: Any = getattr(error, "exit_code", 1)
        run.write_error(1, rank, error=error, step=step, exit_code=code)
    return first_failure(run, 1, codes)


def test_the_earliest_word_counts(run: RunFolder) -> None:
    found = died(run, (1, ValueError("first")), (0, ValueError("second")), codes={0: 1, 1: 1})
    assert found.what == "rank 1 failed at step 3: ValueError: first"
    assert found.log == run.log_path(1, 1)


def test_one_step_is_named_where_the_message_names_its_own(run: RunFolder) -> None:
    found = died(run, (0, NonFiniteError("step 4: the gradient is not finite")), codes={0: 1})
    assert found.what == "rank 0 failed at step 4: the gradient is not finite"
    assert found.step == 3, "the last one that was done"


def test_a_lost_connection_is_not_the_cause_even_if_it_was_said_first(run: RunFolder) -> None:
    assert died(run, (0, GLOO), (1, KeyError("cause")), codes={0: 1, 1: 1}).rank == 1


def test_a_killed_rank_is_the_cause_of_lost_connections(run: RunFolder) -> None:
    found = died(run, (0, GLOO), (2, GLOO), codes={0: 1, 1: KILLED, 2: 1})
    assert found.what == "rank 1 was killed by SIGKILL (out of memory?)"
    assert found.killed


def test_an_exception_is_the_cause_of_a_later_abort(run: RunFolder) -> None:
    assert died(run, (1, ValueError("cause")), codes={0: -6, 1: 1}).rank == 1


def test_a_rank_that_says_nothing_is_named_with_its_exit_code(run: RunFolder) -> None:
    assert died(run, codes={1: 3}).what == "rank 1 ended with exit code 3 and no error message"


def test_only_lost_connections_are_shown_when_nothing_else_is_known(run: RunFolder) -> None:
    assert "Connection closed" in died(run, (0, GLOO), codes={0: 1}).what


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("x"), True),
        (GLOO, True),
        (NoUsableCheckpoint("x"), False),
        (NoProgress("x"), False),
        (NotSaved("the store is gone"), False),
        (StorageError("for now"), True),
        (FencedOut("x"), False),
    ],
)
def test_what_cannot_go_better_is_not_tried_again(run: RunFolder, error: Exception, again: bool) -> None:
    assert died(run, (0, error), codes={0: 1}).may_be_repeated is again


def test_the_same_exception_is_the_same_on_another_rank_but_not_at_another_step(run: RunFolder) -> None:
    first = died(run, (0, ValueError("x")), codes={0: 1})
    assert first.repeats(first)
    other_rank = Failure(1, "rank 1 failed", first.log, 3, "ValueError", "x")
    other_step = Failure(0, "rank 0 failed", first.log, 4, "ValueError", "x")
    assert other_rank.repeats(first)
    assert not other_step.repeats(first)
    assert not first.repeats(None)


def test_a_rank_that_is_killed_twice_is_not_a_repetition(run: RunFolder) -> None:
    killed = died(run, codes={0: KILLED})
    assert not killed.repeats(killed)
