"""Distributed training for PyTorch that finishes what it starts.

The names a user's own code needs, imported when they are first asked for: the command line needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_trainer.training.hooks import Hook
    from dist_trainer.training.task import Loss, Supervised, Task
    from dist_trainer.training.trainer import Result, Scheduler, Trainer

__all__ = ["Hook", "Loss", "Result", "Scheduler", "Supervised", "Task", "Trainer"]

_HOMES = {
    "hooks": ("Hook",),
    "task": ("Loss", "Supervised", "Task"),
    "trainer": ("Result", "Scheduler", "Trainer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dist_trainer.training.{module}"), name)
    raise AttributeError(f"dist_trainer has no {name}; it has {', '.join(__all__)}")
