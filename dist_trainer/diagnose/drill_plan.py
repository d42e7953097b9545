"""What a drill trains: the run's own configuration for a few steps, in a folder of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_trainer.config.load import dump_config, load_config
from dist_trainer.config.schema import Config
from dist_trainer.config.yaml_rules import write_yaml
from dist_trainer.errors import ConfigError, UsageError

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
        path.write_text(write_yaml(tree))
        try:
            path.write_text(dump_config(load_config([path]).config))
        except (ConfigError, ValidationError) as error:
            raise ConfigError(f"for {self.steps} steps the configuration does not hold:\n{error}") from error
        return path


def shortened(config: Config, name: str, steps: int, every_steps: int) -> dict[str, Any]:
    """The configuration as plain values: fewer steps, more checkpoints, no MLflow, as little evaluation as goes."""
    tree: dict[str, Any] = config.model_dump()
    needs_evaluation = config.scheduler is not None and config.scheduler.metric is not None
    length = {"steps": steps, "epochs": None, "early_stopping": None, "profile": None}
    tree["train"] |= {**length, "eval_every_epochs": None, "eval_every_steps": every_steps}
    if not needs_evaluation:
        tree["train"] |= {"eval_every_steps": None}
        tree["data"] |= {"val": None, "test": None}
    if config.scheduler is not None:
        tree["scheduler"] |= {"warmup_steps": min(config.scheduler.warmup_steps, steps)}
    folder = config.checkpoint.folder
    saves = {"every_steps": every_steps, "every_minutes": None, "keep_last": 2}
    kept = {"keep_best": None, "keep_every_steps": None}
    tree["checkpoint"] |= {**saves, **kept, "folder": folder and f"{folder.rstrip('/')}/drills"}
    tree["tracking"] |= {"uri": None, "log_every_steps": 1}
    tree["launch"] |= {"max_restarts": max(1, config.launch.max_restarts)}
    return tree | {"name": name}
