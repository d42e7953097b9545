"""A run's checkpoints, and the one that is meant by a word: what every tool on a run begins with."""

from collections.abc import Callable, Sequence

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.retention import best
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder

_SHOWN = 10


def open_store(
    run: RunFolder, config: CheckpointConfig, *, fence: int = 0, report: Callable[[str], None] = print
) -> CheckpointStore:
    """The run's checkpoints: in its folder, or under its id in the configured store. Fence 0 is for readers."""
    info = run.info()

    def highest_fence() -> int:
        # another run may have taken the folder's place (--fresh) while a lost node still trains this one
        return run.highest_fence() if run.info().run_id == info.run_id else fence + 1

    storage = Storage(run.checkpoint_url(config.folder), shown=run.checkpoint_url(config.folder, shown=True))
    return CheckpointStore(storage, fence=fence, highest_fence=highest_fence, report=report)


def choose(checkpoints: Sequence[Checkpoint], wanted: str, config: CheckpointConfig) -> Checkpoint:
    """`last`, `best` by checkpoint.keep_best, a step or a folder's name, of a list with the newest first.

    Raises UsageError that names those that are there.
    """
    there = ", ".join(str(each.step) for each in checkpoints[:_SHOWN])
    found = None
    if wanted == "best":
        if config.keep_best is None:
            raise UsageError("--checkpoint best: the run has no checkpoint.keep_best that says what is best")
        found = best(checkpoints, config.keep_best)
    elif wanted == "last":
        found = checkpoints[0] if checkpoints else None
    else:
        found = next((each for each in checkpoints if wanted in (str(each.step), each.name)), None)
    if found is None:
        steps = f"there are steps {there}" if there else "none was saved yet"
        raise UsageError(f"--checkpoint {wanted}: no such checkpoint; {steps}")
    return found
