"""What a drill trains: the run's own configuration for a few steps, in a folder of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_trainer.config.load import dump_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import UsageError
from dist_trainer.trials.short_copy import checked_copy, shortened

FEWEST_STEPS = 6
USUAL_STEPS = 12  # three checkpoints
REHEARSAL = "dist_trainer.diagnose.rehearsal.Rehearsal"


@dataclass(frozen=True)
class Plan:
    """The lengths of a drill, and where it happens."""

    config: Config
    scratch: Path  # holds the drill's runs, and nothing else
    working_folder: Path
    steps: int = USUAL_STEPS
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.steps < FEWEST_STEPS:
            raise UsageError(
                f"--steps must be at least {FEWEST_STEPS}, for two checkpoints, got {self.steps}"
            )

    def at(self, scratch: Path) -> "Plan":
        """The same in another folder."""
        return replace(self, scratch=scratch)

    @property
    def every_steps(self) -> int:
        """Between two checkpoints: the third one is the last step's."""
        return self.steps // 3

    def signs(self, name: str) -> Path:
        """Where the ranks of a training and the drill tell each other."""
        return self.scratch / f"{name}-signs"

    def write(self, name: str, *, hold_at: int | None, changes: Mapping[str, Mapping[str, Any]]) -> Path:
        """The configuration file of one training; `hold_at` is the step of the fault. ConfigError if it cannot be."""
        tree = shortened(self.config, name, self.steps, self.every_steps)
        for section, values in changes.items():
            tree[section] = {**tree[section], **values}
        if hold_at is not None:
            self.signs(name).mkdir()
            held = {"target": REHEARSAL, "folder": str(self.signs(name)), "step": hold_at}
            tree["hooks"] = [*tree["hooks"], held]
        path = self.scratch / f"{name}.yaml"
        path.write_text(dump_config(checked_copy(tree, path, f"{self.steps} steps")))
        return path
