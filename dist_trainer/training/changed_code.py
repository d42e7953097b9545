"""Says that a run goes on with other code than before: not refused, since a mended bug is a good reason."""

from collections.abc import Iterable
from contextlib import suppress

from dist_trainer.trained_code import read_trained_code, write_trained_code
from dist_trainer.training.attempt import Attempt
from dist_trainer.training.own_code import users_files


def tell_changed_code(attempt: Attempt, objects: Iterable[object], *, first_step: int) -> None:
    """On rank 0: an alarm where files of the user's changed since the attempt before, and keep what they are now.

    `objects` are those whose modules matter beside the ones in the working folder. At step 0 nothing that was
    trained before is used, so there is nothing to say.
    """
    if not attempt.is_rank_zero:
        return
    files, run = users_files(objects), attempt.run.path
    before = read_trained_code(run)
    changed = before.changed_to(files) if before is not None and first_step else ""
    if changed:
        message = f"{changed}; what was trained before stays as it was"
        attempt.journal.event("alarm", message=message)
        attempt.say(f"warning: {message}")
    with suppress(OSError):  # a full disk: what matters more says so
        write_trained_code(run, attempt.number, files)
