"""Reading a step ahead: what is kept for later, and that nothing of it is seen before its time."""

from collections.abc import Iterator

import pytest
import torch

from dist_trainer.errors import DataError
from dist_trainer.training.ahead import Ahead
from dist_trainer.training.batch import Batch
from dist_trainer.training.fetch import ReadInterrupted
from dist_trainer.training.step_clock import StepClock

CPU = torch.device("cpu")


class Source:
    """Steps 0, 1, ...; says how many were read, and fails at one of them."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.read, self.fails_at, self.error = 0, fails_at, error
        self.had_gradients: list[bool] = []

    def steps(self, last: int) -> Iterator[list[Batch]]:
        for step in range(last):
            self.had_gradients.append(torch.is_grad_enabled())
            self.read += 1
            if step == self.fails_at and self.error is not None:
                raise self.error
            yield [Batch(torch.tensor([step]), 1)]


def test_what_was_read_early_comes_next_and_in_order() -> None:
    source = Source()
    ahead = Ahead(source.steps(3), CPU, early=True)
    found = []
    for _ in range(3):
        found.append(int(next(ahead)[0].data))
        with torch.no_grad():
            ahead.fetch()
            ahead.fetch()
        assert source.read == min(len(found) + 1, 3)
    assert found == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(ahead)
    assert source.had_gradients == [True] * 3, "an engine that ends a backward pass has turned them off"


def test_what_draws_from_the_steps_own_generators_is_not_read_early() -> None:
    source = Source()
    ahead = Ahead(source.steps(3), CPU, early=False)
    next(ahead)
    ahead.fetch()
    assert source.read == 1
    assert int(next(ahead)[0].data) == 1


@pytest.mark.parametrize("error", [DataError("data.train row 7: broken"), ReadInterrupted()])
def test_an_error_waits_until_its_step_is_asked_for(error: Exception) -> None:
    ahead = Ahead(Source(1, error).steps(3), CPU, early=True)
    next(ahead)
    ahead.fetch()  # in the midst of the step before, which is good
    with pytest.raises(type(error)):
        next(ahead)


def test_the_time_of_reading_ahead_is_work_for_data() -> None:
    clock = StepClock(CPU)
    clock.begin()
    clock.data_is_there()
    clock.read_ahead(5.0)
    clock.waits()
    clock.goes_on()
    clock.end()
    work_s, data_s = clock.last
    assert 5.0 <= data_s < 5.1 and work_s < 1.0, "the clock ran meanwhile: it is not added again"
    clock.begin()
    clock.waits()
    clock.read_ahead(5.0)  # as on a GPU
    clock.end()
    assert clock.last[0] >= 5.0
