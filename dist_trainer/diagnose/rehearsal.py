"""The workers' part of a drill: a hook that holds all ranks after one step, once, until the fault has struck.

<folder>/reached-0     rank 0 waits at the step, and no save is under way
<folder>/struck.json   the drill has struck: {} or what a rank is to do to itself; there is no second time
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_trainer.training.hooks import Hook

if TYPE_CHECKING:
    from dist_trainer.training.step import StepResult
    from dist_trainer.training.trainer import Trainer

STRUCK = "struck.json"
RAISE, KILL_IN_SAVE = "raise_on_rank", "kill_in_save"
_LOOK_EVERY_S = 0.01
_PATIENCE_S = 60.0  # a drill that died must not hold its training for ever


class RehearsedFault(RuntimeError):
    """The exception that a drill has a rank raise."""


class Rehearsal(Hook):
    """Waits after `step` for the drill; named in the configuration of the drill's own run, and nowhere else."""

    def __init__(self, folder: str, step: int) -> None:
        self._folder, self._step = Path(folder), step

    def on_step(self, trainer: "Trainer", step: int, result: "StepResult") -> None:
        """Hold, then do to itself what the drill says, if this rank is meant."""
        if step > self._step or (self._folder / STRUCK).exists():
            return
        _wait_until(
            lambda: not trainer.saves.is_busy
        )  # or a save that is due while one is written would be left out
        if step < self._step:
            return
        rank = trainer.attempt.group.rank
        (self._folder / f"reached-{rank}").touch()
        _wait_until((self._folder / STRUCK).exists)
        order: dict[str, Any] = json.loads((self._folder / STRUCK).read_text())
        if order.get(RAISE) == rank:
            raise RehearsedFault(f"a drill has rank {rank} raise this after step {step}")
        if order.get(KILL_IN_SAVE) and rank == 0:
            folder = trainer.settings.checkpoint.folder
            checkpoints = trainer.attempt.run.checkpoints if folder is None else None
            threading.Thread(target=_die_in_save, args=(trainer, checkpoints, step), daemon=True).start()


def _die_in_save(trainer: "Trainer", checkpoints: Path | None, step: int) -> None:
    """SIGKILL while the save after this step is being written: where one can look, once its folder is there."""
    _wait_until(lambda: trainer.saves.is_busy, every_s=0.0005)
    while (
        checkpoints is not None and trainer.saves.is_busy and not list(checkpoints.glob(f"step-{step:09d}-*"))
    ):
        time.sleep(0.0002)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_until(condition: Callable[[], bool], *, every_s: float = _LOOK_EVERY_S) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RehearsedFault(f"the drill said nothing for {_PATIENCE_S:g} s: was it ended?")
        time.sleep(every_s)
