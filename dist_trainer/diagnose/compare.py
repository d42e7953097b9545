"""Whether two trainings of a drill ended alike: their weights to the bit, and the loss of every step on the way."""

import hashlib
from dataclasses import dataclass

from dist_trainer.diagnose.faults import store_of
from dist_trainer.errors import CorruptCheckpoint
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import history

_LOSS = "train/loss"
_WEIGHTS = ("model.safetensors", "training.safetensors")


@dataclass(frozen=True)
class Ending:
    """What a finished training leaves behind."""

    weights: str  # a digest of the model's and the optimizer's tensors
    losses: dict[int, float]  # of each step

    def first_difference(self, other: "Ending", steps: int) -> int | None:
        """The first step whose loss is not the same, or that one of them has not; None where all are alike."""
        for step in range(1, steps + 1):
            if step not in self.losses or self.losses[step] != other.losses.get(step):
                return step
        return None


def ending_of(run: RunFolder, steps: int) -> Ending:
    """Read it, every byte verified. CorruptCheckpoint where the last step's checkpoint is not there."""
    store = store_of(run)
    last = next((checkpoint for checkpoint in store.list() if checkpoint.step == steps), None)
    if last is None:
        raise CorruptCheckpoint(f"{store.storage.url}: no checkpoint of step {steps}")
    store.verify(last)
    digest = hashlib.sha256()
    for name in _WEIGHTS:
        for block in store.storage.stream(f"{last.name}/{name}"):
            digest.update(block)
    return Ending(digest.hexdigest(), history(run.journal_path(0)).get(_LOSS, {}))
