"""From a configuration to its learning rate: the test is trained here, and what came of it read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_trainer.config.load import Loaded
from dist_trainer.config.yaml_rules import write_yaml_line
from dist_trainer.diagnose.words import count
from dist_trainer.errors import DataError, DistTrainerError
from dist_trainer.tuning.range_test import Curve, Rates, curve_of
from dist_trainer.tuning.trial import Trained, train_with_growing_rate, with_rate


@dataclass(frozen=True)
class Found:
    """The result of a range test. `optimizer` is the section with the suggested rate, None where there is none."""

    run: str
    tried: Rates
    curve: Curve
    trained: Trained
    lr: float | None
    optimizer: dict[str, Any] | None
    samples: int  # of a step
    has_schedule: bool = False  # of the configuration's, which the test leaves out

    @property
    def diverged(self) -> bool:
        """Whether the test ended before the highest rate."""
        return len(self.trained.losses) <= self.tried.steps

    @property
    def line(self) -> str | None:
        """The section as a line of YAML."""
        if self.optimizer is None:
            return None
        return write_yaml_line("optimizer", self.optimizer)

    @property
    def notes(self) -> list[str]:
        """What to know before one believes it."""
        curve, notes = self.curve, []
        if curve.lowest is None:
            remedy = (
                f"give a --min far below {self.tried.lowest:g}"
                if self.diverged
                else "a higher --max, more --steps or a larger data.global_batch_size may show more"
            )
            notes.append(
                f"the loss never fell clearly below {curve.start:.4g}, where it began: no rate is suggested; {remedy}"
            )
        elif self.has_schedule:
            notes.append(
                "the configuration has a schedule, which the test leaves out: with one that decays, two or three "
                "times as much may be better"
            )
        if curve.lowest is not None and not self.diverged and curve.lowest >= 0.95 * (len(curve.losses) - 1):
            notes.append(
                f"the loss still falls at {self.tried.highest:g}, the highest rate tried: give a higher --max"
            )
        return notes

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        curve, lowest = self.curve, self.curve.lowest
        points = zip(curve.rates, curve.losses, curve.smoothed, strict=True)
        return {
            "run": self.run,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "line": self.line,
            "lowest_at": None if lowest is None else curve.rates[lowest],
            "diverged": self.diverged,
            "notes": self.notes,
            "cost": {
                "steps": len(self.trained.losses),
                "samples": self.samples * len(self.trained.losses),
                "world_size": self.trained.world_size,
                "seconds": self.trained.seconds,
            },
            "points": [{"lr": lr, "loss": loss, "smoothed": smoothed} for lr, loss, smoothed in points],
        }


def find_rate(loaded: Loaded, tried: Rates, *, workers: int | None, runs: Path, console: Console) -> Found:
    """Train the test and read it. Raises as the training does, and where its loss is of no use from the start."""
    trained = train_with_growing_rate(loaded, tried, workers=workers, runs=runs, console=console)
    _check(trained, tried)
    curve = curve_of(tried, trained.losses)
    lr = None if curve.suggested is None else _rounded(curve.suggested)
    optimizer = None if lr is None else with_rate(loaded, lr)
    size = loaded.config.data.global_batch_size
    scheduled = loaded.config.scheduler is not None
    return Found(loaded.config.name, tried, curve, trained, lr, optimizer, size, scheduled)


def _check(trained: Trained, tried: Rates) -> None:
    losses = trained.losses
    if not losses or not math.isfinite(losses[0]):
        raise DataError(
            f"the loss of the first step is {losses[0] if losses else 'missing'}, before any update: no rate can "
            "help. Look at the data, the model and the loss"
        )
    if sum(map(math.isfinite, losses)) - 1 <= tried.at_rest:
        raise DistTrainerError(
            f"the loss diverged after {count(len(losses) - 1, 'update')}, at rates of "
            f"{tried.at(max(0, len(losses) - 2)):.1e} and less: give a --min far below {tried.lowest:g}"
        )


def _rounded(rate: float) -> float:
    """To two digits: a range test knows no more."""
    return float(f"{rate:.1e}")
