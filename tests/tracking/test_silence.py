"""When silence is a hang, by a clock of the test's own: what is learnt, what is forgiven, who is named."""

import pytest

from dist_trainer.tracking.heartbeat import Beat
from dist_trainer.tracking.silence import Hang, Silence

LIMIT = 120.0


class Clock:
    """Ranks that beat on a clock."""

    def __init__(self, ranks: int = 3, timeout_s: float = LIMIT) -> None:
        self.silence, self.now, self.ranks = Silence(timeout_s), 1000.0, ranks
        self.beats: dict[int, Beat] = {}

    def beat(self, rank: int, step: int, phase: str) -> None:
        self.beats[rank] = Beat(100 + rank, rank, 1, step, phase, self.now)

    def all_beat(self, step: int, phase: str) -> None:
        for rank in range(self.ranks):
            self.beat(rank, step, phase)

    def look(self) -> Hang | None:
        return self.silence.look(self.beats.values(), self.now)

    def wait(self, seconds: float, every_s: float = 1.0) -> Hang | None:
        """Look every second meanwhile; what was found last."""
        found = self.look()
        for _ in range(int(seconds / every_s)):
            self.now += every_s
            found = self.look()
        return found

    def train(self, steps: int, first: int = 0, seconds: float = 0.2) -> None:
        """Steps of this length."""
        for step in range(first, first + steps):
            for phase in ("data", "train", "all-reduce", "update"):
                self.all_beat(step, phase)
                self.wait(seconds / 4, every_s=min(1.0, seconds / 4))

    def hangs_after(self, within_s: float) -> float | None:
        """How long it takes from now until it is called a hang."""
        begin = self.now
        self.look()
        while self.now - begin < within_s:
            self.now += 1.0
            if self.look():
                return self.now - begin
        return None


def test_a_run_of_fast_steps_is_found_hanging_after_thirty_seconds() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "all-reduce")
    clock.beat(2, 20, "data")
    assert clock.hangs_after(200) == pytest.approx(31, abs=1.5)
    hang = clock.look()
    assert hang is not None
    assert hang.describe() == (
        "no progress: rank 2 in data loading for step 21 for 31 s; "
        "ranks 0 and 1 in the all-reduce of step 21, waiting"
    )


def test_a_run_of_slow_steps_has_the_time_that_its_steps_take() -> None:
    clock = Clock()
    clock.train(6, seconds=400)
    clock.all_beat(6, "train")
    assert clock.hangs_after(1000) == pytest.approx(300, abs=3), "three times the longest"


def test_a_first_step_may_take_long_but_not_longer_than_the_group_waits() -> None:
    clock = Clock()
    clock.all_beat(0, "train")
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3)
    clock = Clock()
    clock.all_beat(0, "all-reduce")
    clock.beat(1, 0, "train")
    assert clock.hangs_after(2000) == pytest.approx(0.9 * 2 * LIMIT, abs=3)
    assert "rank 1 computing step 1" in str(clock.look() and clock.look().describe())  # type: ignore[union-attr]


@pytest.mark.parametrize("phase", ["evaluate", "save", "hooks", "resume", "start-up"])
def test_what_a_run_has_not_done_yet_may_take_long(phase: str) -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, phase)
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3)


def test_what_took_long_once_may_take_long_again() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "evaluate")
    clock.wait(200)
    clock.train(20, first=20)
    clock.all_beat(40, "evaluate")
    assert clock.hangs_after(2000) == pytest.approx(600, abs=5)


def test_another_attempt_is_cold_again_but_knows_the_pace() -> None:
    clock = Clock()
    clock.train(20)
    clock.silence.begin()
    clock.beats.clear()
    for rank in range(3):
        clock.beats[rank] = Beat(200 + rank, rank, 2, 10, "train", clock.now)
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3), "it compiles again"


def test_one_rank_that_gets_further_is_enough() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "evaluate")
    for batch in range(100):
        clock.wait(20)
        clock.beat(1, 20, "evaluate")
        assert clock.look() is None, batch


def test_the_last_of_those_that_wait_for_nobody_is_named() -> None:
    clock = Clock(ranks=9)
    clock.train(20)
    clock.all_beat(20, "all-reduce")
    clock.beat(4, 20, "train")
    clock.beat(7, 19, "update")
    hang = clock.wait(200)
    assert hang is not None
    assert [beat.rank for beat in hang.stuck] == [7]
    assert "rank 7 in the update of step 20" in hang.describe()
    assert (
        "ranks 0-3, 5, 6 and 8 in the all-reduce of step 21, rank 4 computing step 21, waiting"
        in hang.describe()
    )


def test_where_all_wait_a_stopped_one_is_named() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "all-reduce")
    hang = clock.wait(200)
    assert hang is not None
    assert hang.describe().startswith("no progress: ranks 0-2 in the all-reduce of step 21 for 200 s")
    assert hang.because_of({1}).describe() == (
        "no progress: rank 1 in the all-reduce of step 21 for 200 s (stopped by a signal); "
        "ranks 0 and 2 in the all-reduce of step 21, waiting"
    )


def test_a_watcher_that_was_stopped_itself_blames_nobody() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "data")
    clock.look()
    clock.now += 3600  # the whole job was suspended
    assert clock.look() is None
    assert clock.hangs_after(200) == pytest.approx(31, abs=2)


def test_ranks_of_other_nodes_do_not_make_a_hang_but_are_named() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "all-reduce")
    clock.beat(2, 20, "data")
    for _ in range(100):
        clock.now += 1
        clock.beat(0, 20, "all-reduce")
        assert clock.silence.look(clock.beats.values(), clock.now, watched={0}) is None
        hang = clock.silence.look(clock.beats.values(), clock.now, watched={1})
    assert hang is not None and [beat.rank for beat in hang.stuck] == [2]


def test_a_peer_that_is_not_watched_and_gets_further_is_no_hang() -> None:
    """A rank under torchrun watches itself alone: it has done its share, the other one beats batch by batch."""
    clock = Clock(ranks=2)
    clock.train(20)
    clock.all_beat(20, "evaluate")
    clock.wait(2)
    clock.beat(1, 20, "exchange")
    for _ in range(300):
        clock.now += 1
        clock.beat(0, 20, "evaluate")
        assert clock.silence.look(clock.beats.values(), clock.now, watched={1}) is None


def test_the_first_step_of_a_resumed_attempt_is_as_cold_as_that_of_a_new_run() -> None:
    clock = Clock()
    clock.train(20)
    clock.silence.begin()
    clock.beats = {rank: Beat(200 + rank, rank, 2, 0, "start-up", clock.now) for rank in range(3)}
    clock.wait(3)
    for phase, step in (("joining", 0), ("resume", 0), ("data", 34)):
        clock.all_beat(step, phase)
        clock.wait(1)
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3), "its loaders start"


def test_the_start_of_a_first_evaluation_teaches_nothing() -> None:
    clock = Clock()
    clock.train(20)
    clock.all_beat(20, "evaluate")
    clock.wait(0.5, every_s=0.1)
    clock.all_beat(20, "exchange")
    clock.wait(0.5, every_s=0.1)
    clock.all_beat(20, "evaluate")
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3)


def test_a_new_shape_that_is_compiled_may_take_long() -> None:
    clock = Clock()
    clock.train(200)
    clock.all_beat(200, "compile")
    assert clock.hangs_after(2000) == pytest.approx(10 * LIMIT, abs=3)
