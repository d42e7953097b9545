"""The configuration of a trial: the user's own for a few steps, told nobody about and kept nowhere."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_trainer.config.load import load_config
from dist_trainer.config.schema import Config
from dist_trainer.config.yaml_rules import write_yaml
from dist_trainer.errors import ConfigError


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


def checked_copy(tree: dict[str, Any], path: Path, length: str) -> Config:
    """What was changed, as a configuration; `path` is a file to read it from. ConfigError where it does not hold."""
    path.write_text(write_yaml(tree))
    try:
        return load_config([path]).config
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"for {length} the configuration does not hold:\n{error}") from error
