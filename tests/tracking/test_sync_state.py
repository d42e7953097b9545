"""Which points are still to go: each metric and step once, whatever was rewound, repeated or cut short."""

from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.sync_state import JournalPoints, SyncState, count_left

NAME = "rank-0.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "mine", "", working_folder=tmp_path)


def write(run: RunFolder, attempt: int, steps: range, **values: float) -> None:
    with Journal(run.journal_path(0), attempt=attempt, rank=0) as journal:
        for step in steps:
            journal.metrics(step, values)
            journal.event("noise", step=step)


def send(
    run: RunFolder, state: SyncState, *, size: int = 1000, stop_after: int = 10**9
) -> list[tuple[str, int]]:
    sent = []
    for number, (points, offset) in enumerate(JournalPoints(run.journal_path(0), state).batches(size)):
        if number == stop_after:
            break
        state.sent(NAME, points, offset)
        sent += [(point.key, point.step) for point in points]
    return sent


def test_every_point_goes_once_and_later_ones_follow(run: RunFolder) -> None:
    state = SyncState()
    write(run, 1, range(5), a=1, b=2)
    assert send(run, state) == [(key, step) for step in range(5) for key in "ab"]
    assert send(run, state) == []
    write(run, 1, range(5, 7), a=1)
    assert send(run, state) == [("a", 5), ("a", 6)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("stop_after", [0, 1, 2, 5])
def test_a_process_that_dies_between_batches_loses_nothing(
    run: RunFolder, size: int, stop_after: int
) -> None:
    state = SyncState()
    write(run, 1, range(6), a=1, b=2, c=3, d=4)
    first = send(run, state, size=size, stop_after=stop_after)
    second = send(run, state, size=size)
    # a batch that ended inside a record is sent again from the record's start: the same points, kept once
    assert set(first) | set(second) == {(key, step) for step in range(6) for key in "abcd"}
    assert len(second) == len(set(second))


def test_a_resume_that_repeats_steps_doubles_none(run: RunFolder) -> None:
    state = SyncState()
    write(run, 1, range(10), a=1)
    send(run, state)
    write(run, 2, range(6, 14), a=2)
    assert send(run, state) == [("a", step) for step in range(10, 14)]


def test_a_resume_that_logs_at_other_steps_loses_none(run: RunFolder) -> None:
    state = SyncState()
    write(run, 1, range(0, 30, 10), a=1)
    send(run, state)
    write(run, 2, range(0, 35, 5), a=1)
    assert send(run, state) == [("a", 5), ("a", 15), ("a", 25), ("a", 30)]
    write(run, 3, range(5, 40, 5), a=1)
    write(run, 3, range(13, 14), b=1)
    assert send(run, state) == [("a", 35), ("b", 13)]


def test_rewinds_in_one_backlog_are_the_same_as_in_several(run: RunFolder) -> None:
    write(run, 1, range(0, 30, 10), a=1)
    write(run, 2, range(0, 35, 5), a=1)
    write(run, 3, range(15, 40, 5), a=1)
    sent = send(run, SyncState(), size=4)
    assert sorted(sent) == [("a", step) for step in range(0, 40, 5)]


def test_the_same_step_written_twice_goes_once(run: RunFolder) -> None:
    write(run, 1, range(3), a=1)
    write(run, 1, range(2, 3), a=5)
    write(run, 1, range(1, 2), a=5)
    assert send(run, SyncState()) == [("a", 0), ("a", 1), ("a", 2)]


def test_the_state_survives_on_disk_and_counts_what_is_left(run: RunFolder) -> None:
    assert SyncState.load(run) == SyncState()
    write(run, 1, range(4), a=1, b=1)
    state = SyncState(mlflow_run="x", experiment="1")
    assert count_left(run, state) == 8
    send(run, state)
    state.save(run)
    assert SyncState.load(run) == state
    write(run, 1, range(4, 5), a=1)
    assert count_left(run, SyncState.load(run)) == 1


@pytest.mark.parametrize("offset", [-1, 10**6, 10**30])
def test_an_offset_that_the_journal_does_not_reach_sends_all_of_it_again(run: RunFolder, offset: int) -> None:
    """A loss of power may take the journal's end, and leave the state that knew of it."""
    write(run, 1, range(4), a=1)
    state = SyncState(mlflow_run="x", offsets={NAME: offset}, steps={NAME: {"a": 9}})
    state.save(run)
    assert count_left(run, SyncState.load(run)) == 4
    assert send(run, state) == [("a", step) for step in range(4)]


def test_the_time_of_a_point_is_the_same_at_every_reading(run: RunFolder) -> None:
    write(run, 1, range(200), a=1)
    first, second = (list(JournalPoints(run.journal_path(0), SyncState()).batches()) for _ in range(2))
    assert first == second
