"""A run's evaluations: whether one is due, whether there is time for it, and what the latest one gave."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from dist_trainer.config.schema import Settings
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.build import Parts
from dist_trainer.training.evaluation import evaluate, is_due
from dist_trainer.training.random_state import seed_step
from dist_trainer.training.recorder import Recorder
from dist_trainer.training.stop import Interruption
from dist_trainer.training.time_limit import TimeLimit

_PHASE = 63  # of seed_step: no task has so many


class Evaluations:
    """Evaluates the parts of one attempt. `values` are those of the latest one of data.val, made after step `at`."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        attempt: Attempt,
        *,
        recorder: Recorder,
        limit: TimeLimit,
        interruption: Interruption,
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._attempt = attempt
        self._recorder = recorder
        self._limit = limit
        self._interruption = interruption
        self.values: dict[str, float] = {}
        self.at = -1

    def is_due(self, step: int) -> bool:
        """Whether data.val is to be evaluated after this step, and was not yet."""
        if "val" not in self._parts.eval_loaders or step == self.at:
            return False
        steps_per_epoch = self._parts.sampler.steps_per_epoch
        return is_due(self._settings.train, step, self._parts.total_steps, steps_per_epoch)

    def in_time(self, split: str, step: int) -> dict[str, float] | None:
        """As `now`, and None too where the time limit leaves too little time. Collective."""
        began, values = time.monotonic(), None
        rows = self._parts.eval_loaders[split].rows * self._attempt.group.world_size
        if self._limit.may_evaluate(split, in_steps=rows / self._settings.data.global_batch_size):
            values = self.now(split, step)
            self._limit.evaluated(split, time.monotonic() - began, whole=values is not None)
        return values

    def now(self, split: str, step: int) -> dict[str, float] | None:
        """<split>/loss and each <split>/<metric>, exactly; None where a rank was interrupted. Collective."""
        parts, group = self._parts, self._attempt.group
        average = parts.train_step.average
        seed_step(self._settings.seed, step, group.rank, phase=_PHASE)
        phase = "evaluate" if split == "val" else "test"
        with self._recorder.apart(step, phase), average.in_place() if average else nullcontext():
            values = evaluate(
                parts.model,
                parts.task,
                parts.metrics,
                parts.eval_loaders[split],
                group,
                autocast=parts.train_step.autocast,
                interrupted=self._interrupted,
            )
        return None if values is None else {f"{split}/{name}": value for name, value in values.items()}

    def _interrupted(self) -> bool:
        self._attempt.heartbeat.again()  # a batch is done
        return self._interruption()

    def state_dict(self) -> dict[str, Any]:
        """The latest values, and after which step they were."""
        return {"evaluated_at": self.at, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.at, self.values = state["evaluated_at"], state["values"]
