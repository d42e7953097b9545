"""May a run that is there already go on: its configuration, and the folders kept when it may not."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from dist_trainer.adapters.files import replace_file
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.config.changes import LENGTHS, Change, changes, describe, unaccepted
from dist_trainer.config.load import Loaded, dump_config, read_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.journal import last_saved_step, planned_steps
from dist_trainer.trained_code import changed_in


def existing_run(folder: Path) -> RunFolder | None:
    """The run in the folder, if one is there."""
    return RunFolder.open(folder) if (folder / "run.json").exists() else None


def move_aside(folder: Path, *, job_is_over: Callable[[str], bool] = lambda job: False) -> Path | None:
    """Give the folder the next free name `<name>-old-<n>` beside it; UsageError while somebody trains it.

    `job_is_over`: see RunFolder.lock.
    """
    if not folder.exists():
        return None
    if (folder / "sweep.json").exists():
        raise UsageError(f"{folder} is a sweep, whose cells are runs of their own; give the run another name")
    number = 1
    while (old := folder.with_name(f"{folder.name}-old-{number}")).exists():
        number += 1
    with ExitStack() as stack:
        if (run := existing_run(folder)) is not None:
            stack.enter_context(run.lock(job_is_over=job_is_over))
        folder.rename(old)
    return old


def is_done(run: RunFolder, loaded: Loaded, allow_change: Sequence[str]) -> bool:
    """Whether nothing is left to train; UsageError where the configuration may not be what it now is."""
    old = read_config(run.config_path)
    found = changes(old, loaded.config)
    refused = unaccepted(found, allow_change)
    if refused and _has_saved(run, old):
        unknown = [key for key in allow_change if not any(_covers(key, change.key) for change in found)]
        ends = run.read_status().state == "finished" and not _is_longer(found)
        raise UsageError(_refusal(run, refused, unknown, ends=ends))
    if run.read_status().state != "finished":
        return False
    if ended_by_early_stopping(run):  # more epochs alone would not begin
        return not any(change.key.startswith("train.early_stopping") for change in found)
    return not _is_longer(found)


def reopen(run: RunFolder, *, run_again: bool = False) -> Status | None:
    """Have a finished run no longer say so, since it goes on; the status before, None where nothing was changed.

    A run whose end is told already would not be trained by its next job. For who holds the run's lock.
    """
    before = run.read_status()
    if before.state != "finished":
        return None
    why = "a longer training was asked for"
    run.write_status(Status("stopped", why, before.step, results=before.results, run_again=run_again))
    return before


def ended_by_early_stopping(run: RunFolder) -> bool:
    """Whether a finished run had steps left."""
    total, step = planned_steps(run.journal_path(0)), run.read_status().step
    return total is not None and step is not None and step < total


def nothing_left(run: RunFolder) -> str:
    """Why there is nothing to train, and what would be."""
    how, goes_on = "is finished", "a longer train.epochs goes on"
    if ended_by_early_stopping(run):
        how = f"was ended by early stopping at step {run.read_status().step}"
        goes_on = "a higher train.early_stopping.patience or train.early_stopping=null goes on"
    changed = changed_in(run.path, run.info().working_folder)
    warning = f"\nwarning: {changed}; the results are of the code before" if changed else ""
    return f"run {run.path.name} {how}: --fresh trains it anew, {goes_on}{warning}"


def _has_saved(run: RunFolder, config: Config) -> bool:
    """Whether there is, or was before it got lost, something that a changed configuration could spoil."""
    return last_saved_step(run.journal_path(0)) is not None or bool(open_store(run, config.checkpoint).list())


def _is_longer(found: Sequence[Change]) -> bool:
    return any(change.harmless and change.key in LENGTHS for change in found)


def _covers(allowed: str, key: str) -> bool:
    return f"{key}.".startswith(f"{allowed}.")


def _refusal(run: RunFolder, refused: Sequence[Change], unknown: Sequence[str], *, ends: bool) -> str:
    accept = " ".join(f"--allow-change {change.key}" for change in refused)
    go_on = f"to go on with the change: {accept}; to train anew: --fresh, or another name"
    if ends:
        longer = f"longer with a larger train.epochs and {accept}"
        go_on = f"it is finished; train anew with --fresh or another name, or {longer}"
    idle = f"\n--allow-change {', '.join(unknown)}: has not changed" if unknown else ""
    return f"run {run.path.name} was begun with another configuration:\n{describe(refused)}\n{go_on}{idle}"


def telling_changes(run: RunFolder, config: Config) -> str:
    """One line for each change of the run's configuration that changes its numbers; empty without one."""
    return describe(
        [change for change in changes(read_config(run.config_path), config) if not change.harmless]
    )


def rewrite_config(run: RunFolder, config: Config) -> None:
    """config.yaml as it now is; the one before stays as config-<n>.yaml."""
    new, old = dump_config(config).encode(), run.config_path.read_bytes()
    if new == old:
        return
    number = 1
    while (kept := run.path / f"config-{number}.yaml").exists():
        number += 1
    replace_file(kept, old)
    replace_file(run.config_path, new)
