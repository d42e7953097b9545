"""What training says about itself: the journal's metrics, and each rank's heartbeat."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from dist_trainer.errors import DataError
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.step import StepResult, TrainStep
from dist_trainer.training.stop import Agreed


class Recorder:
    """Adds up what happens between two logged steps. Rank 0 writes metrics; every rank beats."""

    def __init__(self, attempt: Attempt, *, every_steps: int, epoch_rows: int) -> None:
        self._attempt = attempt
        self._epoch_rows = epoch_rows
        self._bad_in_a_row = 0
        self._every = every_steps
        self._agreed: Agreed | None = None
        self._clear()

    def _clear(self) -> None:
        self._since = time.perf_counter()
        self._rows = 0
        self._waited_s = 0.0
        self._apart_s = 0.0  # evaluations: not part of the steps' time

    @contextmanager
    def waiting_for_data(self, step: int) -> Iterator[None]:
        """The time in this block is spent waiting for the loader."""
        self._attempt.heartbeat.beat(step, "data")
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start
        self._attempt.heartbeat.beat(step, "train")

    @contextmanager
    def apart(self, step: int, phase: str) -> Iterator[None]:
        """The time in this block does not count as training."""
        self._attempt.heartbeat.beat(step, phase)
        start = time.perf_counter()
        yield
        self._apart_s += time.perf_counter() - start
        self._attempt.heartbeat.beat(step, "train")

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
        self._rows += rows
        if result.skipped and self._attempt.is_rank_zero:
            self._attempt.journal.event("skipped", step=step, reason="non-finite gradient")
        if step % self._every == 0:
            if self._attempt.is_rank_zero:
                optimizer = next(iter(train_step.optimizers.values()))
                self._attempt.journal.metrics(step, self._values(result, optimizer, epoch))
            self._clear()

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
