"""The learning-rate schedule: warm-up, then any torch scheduler, and how it goes on after a change."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dist_trainer.errors import ConfigError
from dist_trainer.training.group_options import configured, options, plain


class Schedule:
    """Linear warm-up from lr/warmup_steps to lr, then any torch scheduler; one `step` per update."""

    def __init__(
        self,
        optimizer: Optimizer,
        make: Callable[[Optimizer], LRScheduler] | None,
        *,
        warmup_steps: int = 0,
        metric: str | None = None,
        total_steps: int = 0,
    ) -> None:
        self.metric = metric
        self._optimizer = optimizer
        self._warmup_steps = warmup_steps
        self._updates = 0
        before = configured(optimizer)
        self._scheduler = make(optimizer) if make else None
        # a first update that fp16's scaler or skip_nonfinite left out is no mistake to warn of
        optimizer._opt_called = True  # type: ignore[attr-defined]
        self._full = [float(group["lr"]) for group in optimizer.param_groups]
        if isinstance(self._scheduler, ReduceLROnPlateau) != (metric is not None):
            raise ConfigError(
                "scheduler.metric names what ReduceLROnPlateau watches, for example val/loss; "
                + ("it is missing" if metric is None else "this scheduler takes none")
            )
        self._start = self._set_at_start(before)
        self._built = self._describe(total_steps)
        self._warm_up()

    def _set_at_start(self, before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the scheduler set in each group (OneCycleLR: the momentum as well), and the rate."""
        return [
            {
                key: copy.deepcopy(value)
                for key, value in options(group).items()
                if key == "lr" or key not in old or plain(value) != old[key]
            }
            for group, old in zip(self._optimizer.param_groups, before, strict=True)
        ]

    def _describe(self, total_steps: int) -> dict[str, Any]:
        """What was configured, in saved values: a later attempt compares it with its own."""
        has_course = self._scheduler is not None and self.metric is None
        return {
            "kind": type(self._scheduler).__name__,
            "warmup_steps": self._warmup_steps,
            "total_steps": total_steps if has_course else None,
            "metric": self.metric,
            "full": list(self._full),
            "scheduler": plain(self._scheduler.state_dict()) if self._scheduler is not None else None,
        }

    @property
    def scheduled(self) -> frozenset[str]:
        """The group options that the schedule sets."""
        return frozenset(key for group in self._start for key in group)

    def step(self) -> None:
        """After an update."""
        self._updates += 1
        if self._updates <= self._warmup_steps:
            self._warm_up()
        elif self._scheduler is not None and self.metric is None:
            self._scheduler.step()

    def step_on(self, metrics: dict[str, float]) -> None:
        """After an evaluation: ReduceLROnPlateau looks at its metric. Raises ConfigError if it is not there."""
        if self.metric is None or self._updates < self._warmup_steps:
            return
        if self.metric not in metrics:
            raise ConfigError(
                f"scheduler.metric is {self.metric}; an evaluation gives {', '.join(sorted(metrics))}"
            )
        assert isinstance(self._scheduler, ReduceLROnPlateau)
        self._scheduler.step(metrics[self.metric])

    def _warm_up(self) -> None:
        if self._updates > self._warmup_steps or self._warmup_steps == 0:
            return
        share = _share(self._updates, self._warmup_steps)
        self._set_rates([full * share for full in self._full])

    def _set_rates(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Updates so far, the torch scheduler's own state, and what was configured."""
        inner = self._scheduler.state_dict() if self._scheduler is not None else None
        return {"updates": self._updates, "scheduler": inner, "built": self._built}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`; the rates themselves are in the optimizer's state.

        Where the schedule is another one since (a longer run, another lr or warm-up), the rate goes on as if it
        had been that one from the start. ReduceLROnPlateau's course is not known ahead: its rate goes on from
        today's lr, reduced as often as before.
        """
        if state["built"] == self._built:
            self._updates = state["updates"]
            if self._scheduler is not None:
                self._scheduler.load_state_dict(state["scheduler"])
        elif isinstance(self._scheduler, ReduceLROnPlateau):
            self._go_on_reduced(self._scheduler, state)
        else:
            self._repeat(state["updates"])

    def _repeat(self, updates: int) -> None:
        """Go through the schedule from its start; the optimizer's options are an earlier schedule's."""
        for group, start in zip(self._optimizer.param_groups, self._start, strict=True):
            group.update(copy.deepcopy(start))
        self._updates = 0
        self._warm_up()
        for _ in range(updates):
            self.step()

    def _go_on_reduced(self, scheduler: ReduceLROnPlateau, state: dict[str, Any]) -> None:
        then, updates = state["built"], state["updates"]
        had_plateau = then["kind"] == self._built["kind"]
        share, share_then = (_share(updates, steps) for steps in (self._warmup_steps, then["warmup_steps"]))
        rates = []
        for group, full, full_then in zip(
            self._optimizer.param_groups, self._full, then["full"], strict=True
        ):
            reduced = float(group["lr"]) / (full_then * share_then) if had_plateau and full_then else 1.0
            rates.append(full * share * reduced)
        self._set_rates(rates)
        self._updates = updates
        if had_plateau and then["metric"] == self.metric:
            fresh, unchanged = scheduler.state_dict(), self._built["scheduler"]
            kept = {
                key: value
                for key, value in state["scheduler"].items()
                if key in fresh and then["scheduler"].get(key) == unchanged[key]
            }
            scheduler.load_state_dict({**fresh, **kept, "_last_lr": rates})


def _share(updates: int, warmup_steps: int) -> float:
    return min(1.0, (updates + 1) / warmup_steps) if warmup_steps else 1.0
