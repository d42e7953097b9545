"""What training says about itself: the journal's metrics, each rank's heartbeat, and who is slower than the rest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from dist_trainer.errors import DataError
from dist_trainer.tracking.heartbeat import WAITING
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.phases import PhaseTimer
from dist_trainer.training.step import StepResult, TrainStep
from dist_trainer.training.step_clock import StepClock
from dist_trainer.training.stop import Agreed
from dist_trainer.training.stragglers import Stragglers

_ROW_BEAT_S = 1.0  # between two beats while rows are read


class Recorder:
    """Adds up what happens between two logged steps. Rank 0 writes metrics; every rank beats.

    `nodes` are the names of the ranks' nodes, once they are known; `phases`, while there is one, is told where
    each step's time goes.
    """

    def __init__(self, attempt: Attempt, *, every_steps: int, epoch_rows: int) -> None:
        self._attempt = attempt
        self._epoch_rows = epoch_rows
        self._bad_in_a_row = 0
        self._every = every_steps
        self._agreed: Agreed | None = None
        self._clock = StepClock(attempt.group.device)
        self._stragglers = Stragglers()
        self._step = 0
        self.nodes: Sequence[str] = ()
        self.phases: PhaseTimer | None = None
        self._row_beat = 0.0
        self._is_replaying = False
        self._has_told = False  # that it computes, since the data came
        self._clear()

    def _clear(self) -> None:
        self._since = time.perf_counter()
        self._rows = 0
        self._waited_s = 0.0
        self._apart_s = 0.0  # evaluations: not part of the steps' time

    def _beat(self, phase: str) -> None:
        """Towards the next step; while one is replayed, a rank is at no step of its own."""
        if self._is_replaying:
            phase = "joining" if phase in WAITING else "resume"
        self._attempt.heartbeat.beat(self._step, phase)

    def _enter(self, phase: str | None) -> None:
        if self.phases is not None:
            self.phases.enter(phase)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """A step in this block is none of the run's: it only makes the state that a checkpoint is put into."""
        self._is_replaying = True
        try:
            yield
        finally:
            self._is_replaying = False
            self._beat("resume")

    @contextmanager
    def waiting_for_data(self, step: int) -> Iterator[None]:
        """The time in this block is spent waiting for the loader."""
        self._step = step
        self._enter("data wait")
        if not self._attempt.heartbeat.says(
            step, "data"
        ):  # since the step before, unless there was more to do
            self._beat("data")
        self._clock.begin()
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start
        self._clock.data_is_there()
        self._enter("bookkeeping")
        self._beat("train")
        self._has_told = True

    def reading_ahead(self, fetch: Callable[[], None]) -> Callable[[], None]:
        """`fetch`, which reads the next step's data in the midst of a step."""

        def read() -> None:
            if self._is_replaying:
                return
            self._enter("data wait")
            self._beat("read-ahead")
            start = time.perf_counter()
            fetch()
            seconds = time.perf_counter() - start
            if not self._clock.device_works:  # what a GPU computes beside is no wait
                self._waited_s += seconds
            self._clock.read_ahead(seconds)

        return read

    def broadcasts(self) -> None:
        """DDP waits until every rank has rank 0's buffers."""
        self._enter("communication not hidden")
        self._clock.waits()
        self._beat("broadcast")
        self._has_told = False

    def computes(self) -> None:
        """Nothing of the other ranks is needed until `reduces`."""
        self._enter("forward")
        self._clock.goes_on()
        if not self._has_told:
            self._beat("train")
        self._has_told = False

    def goes_back(self) -> None:
        """The loss is there."""
        self._enter("backward")

    def reading(self, interrupted: Callable[[], bool]) -> Callable[[], bool]:
        """`interrupted`, which a rank that reads its own rows asks before each: slow rows are no hang."""

        def ask() -> bool:
            now = time.monotonic()
            if now - self._row_beat >= _ROW_BEAT_S:
                self._row_beat = now
                self._attempt.heartbeat.again()
            return interrupted()

        return ask

    def reduces(self) -> None:
        """This rank's gradients are there; it waits for the others'."""
        self._enter("communication not hidden")
        self._clock.waits()
        self._beat("all-reduce")

    def reduced(self) -> None:
        """The backward pass and what it sent are done, or queued on a GPU."""
        self._enter("optimizer")

    def updates(self) -> None:
        """The others' gradients are there too."""
        self._clock.goes_on()
        self._clock.device_is_done()
        self._beat("update")

    def work(self) -> tuple[float, float]:
        """Seconds of this rank's work, and of its waiting for data, in the step before."""
        return self._clock.last

    @contextmanager
    def apart(self, step: int, phase: str) -> Iterator[None]:
        """The time in this block does not count as training."""
        start = time.perf_counter()
        self._enter(None)
        self._attempt.heartbeat.beat(step, phase)
        yield
        self._apart_s += time.perf_counter() - start
        self._enter("bookkeeping")

    def agreed(self, agreed: Agreed) -> None:
        """Note the ranks' step times, and say how many bad rows were skipped."""
        self._agreed = agreed
        if agreed.bad_rows and self._attempt.is_rank_zero:
            self._attempt.journal.event("bad_rows", skipped=agreed.bad_rows)
        self._bad_in_a_row = 0 if agreed.rows else self._bad_in_a_row + agreed.bad_rows
        if self._bad_in_a_row >= self._epoch_rows:
            raise DataError(
                f"the last {self._bad_in_a_row} rows, an epoch's, were all left out as bad (data.bad_rows: skip): "
                "nothing is trained any more; data.bad_rows=raise shows the first one's error"
            )

    def step(self, step: int, result: StepResult, train_step: TrainStep, *, rows: int, epoch: float) -> None:
        """After a step and before its schedule's; `rows` is the global batch."""
        self._enter("bookkeeping")
        self._rows += rows
        self._look_for_stragglers(step, result)
        if result.skipped and self._attempt.is_rank_zero:
            self._attempt.journal.event("skipped", step=step, reason="non-finite gradient")
        if step % self._every == 0:
            if self._attempt.is_rank_zero:
                optimizer = next(iter(train_step.optimizers.values()))
                self._attempt.journal.metrics(step, self._values(result, optimizer, epoch))
            self._clear()

    def step_is_over(self) -> None:
        """After the schedules and hooks of a step."""
        self._clock.end()
        self._step += 1
        self._beat("data")  # what is waited for until then is waited for after this step

    def _look_for_stragglers(self, step: int, result: StepResult) -> None:
        found = self._stragglers.add(result.work_s, result.data_s)
        if found is None or not self._attempt.is_rank_zero:
            return
        message = found.describe(self.nodes[found.rank] if self.nodes else "?")
        self._attempt.journal.metrics(step, {"straggler/rank": found.rank, "straggler/times": found.times})
        self._attempt.journal.event("straggler", step=step, straggler=found.rank, message=message)
        self._attempt.say(message)

    def _values(self, result: StepResult, optimizer: Optimizer, epoch: float) -> dict[str, float]:
        passed = max(time.perf_counter() - self._since - self._apart_s, 1e-9)
        values = {
            "train/loss": result.loss,
            "train/grad_norm": result.grad_norm,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "samples_per_s": self._rows / passed,
            "data_wait_share": min(1.0, self._waited_s / passed),
            "epoch": epoch,
        }
        if self._agreed is not None and self._agreed.slowest_step_s:
            values["step_time_s/median"] = self._agreed.median_step_s
            values["step_time_s/slowest"] = self._agreed.slowest_step_s
        if self._attempt.group.device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return values

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write an evaluation's values."""
        if self._attempt.is_rank_zero and metrics:
            self._attempt.journal.metrics(step, metrics)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self._attempt.say(f"step {step}: {shown}")
