"""The training of a range test: a short copy of the user's, in which the rate grows; it is cleared away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_trainer.config.load import Loaded
from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED, ConfigError, DistTrainerError
from dist_trainer.launchers.results import Ending
from dist_trainer.launchers.train import train_copy
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import history
from dist_trainer.trials.scratch import scratch_folder
from dist_trainer.trials.short_copy import checked_copy, shortened
from dist_trainer.tuning.range_test import Rates

_KIND, _NAME = "tuning", "range-test"
_LOSS = "train/loss"


@dataclass(frozen=True)
class Trained:
    """What the training said of itself, and what it cost."""

    losses: list[float]  # of each step, before its update
    world_size: int
    seconds: float


def train_with_growing_rate(
    loaded: Loaded, tried: Rates, *, workers: int | None, runs: Path, console: Console
) -> Trained:
    """Train it. ConfigError for what does not fit, DistTrainerError with the first rank's words where it fails."""
    began = time.monotonic()
    with scratch_folder(runs, _KIND, loaded.config.name) as scratch:
        copy = checked_copy(_tree(loaded, tried), scratch / f"{_NAME}.yaml", f"{tried.steps} growing rates")
        try:
            ending = train_copy(
                Loaded(copy, loaded.locate),
                scratch / _NAME,
                workers=workers,
                console=console,
                total_steps=_steps(tried),
            )
        except InterruptedError:
            raise _stopped() from None
        losses = list(_losses(ending))
        return Trained(losses, _world_size(ending.run), time.monotonic() - began)


def _tree(loaded: Loaded, tried: Rates) -> dict[str, Any]:
    """The configuration: its schedule and hooks are left out, everything that makes a step what it is stays."""
    config = loaded.config.model_copy(update={"scheduler": None})
    steps = _steps(tried)
    tree = shortened(config, _NAME, steps + 1, steps + 1)
    rates = {"lowest": tried.lowest, "highest": tried.highest, "count": tried.steps}
    tree["scheduler"] = {"target": "dist_trainer.tuning.growing.GrowingRate", **rates}
    end = {"target": "dist_trainer.tuning.growing.EndOfTest", "last": steps, "at_rest": tried.at_rest}
    tree["hooks"] = [end]
    tree["optimizer"] = with_rate(loaded, tried.lowest)
    tree["train"]["skip_nonfinite"] = steps  # EndOfTest sees it
    tree["checkpoint"]["folder"] = None
    tree["launch"]["max_restarts"] = 0
    return tree


def _steps(tried: Rates) -> int:
    return tried.steps + 1  # the last rate shows in the loss of the step after it


def with_rate(loaded: Loaded, rate: float) -> dict[str, Any]:
    """The optimizer's section with another rate; a group with a rate of its own keeps its share of it."""
    config: Config = loaded.config
    section = config.optimizer.model_dump(exclude_unset=True)
    groups, before = section.pop("groups", []), section.get("lr")
    own = [index for index, group in enumerate(groups) if "lr" in group]
    if own and not (isinstance(before, int | float) and before > 0):
        key = f"optimizer.groups.{own[0]}.lr"
        raise loaded.error([(key, "is given and optimizer.lr is not: give both, and their ratio is kept")])
    for index in own:
        groups[index] = {**groups[index], "lr": float(f"{rate * groups[index]['lr'] / before:.6g}")}
    rest = {key: value for key, value in section.items() if key not in ("target", "lr")}
    return {"target": section["target"], "lr": rate, **rest, **({"groups": groups} if groups else {})}


def _losses(ending: Ending) -> Iterator[float]:
    if ending.state == "stopped":
        raise _stopped()
    if ending.exit_code != FINISHED:
        error = ConfigError if ending.exit_code == ConfigError.exit_code else DistTrainerError
        raise error(f"a short copy of it does not train:\n{ending.message}")
    found = history(ending.run.journal_path(0)).get(_LOSS, {})
    yield from (found[step] for step in sorted(found))


def _stopped() -> DistTrainerError:
    return DistTrainerError("stopped before there was a curve; nothing is kept")


def _world_size(run: RunFolder) -> int:
    starts = [line for line in run.attempts() if line["event"] == "start"]
    return int(starts[-1]["world_size"])
