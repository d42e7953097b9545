"""Makes a run's folder without training it: for torchrun, whose workers need nothing else."""

from pathlib import Path

from dist_trainer.config.load import Loaded, dump_config
from dist_trainer.errors import UsageError
from dist_trainer.launchers.existing import existing_run, is_done, reopen, rewrite_config
from dist_trainer.run_folder import RunFolder


def prepare(loaded: Loaded, *, runs: str | Path = "runs") -> RunFolder:
    """The configuration's run, created if it is not there; several nodes may ask at once.

    Raises UsageError where the run that is there has another configuration, or would get a changed one while
    it is trained.
    """
    folder = Path(runs, loaded.config.name).absolute()
    run = existing_run(folder)
    if run is None:
        try:
            return RunFolder.create(folder, dump_config(loaded.config), working_folder=Path.cwd())
        except UsageError:  # another node was quicker
            run = existing_run(folder)
            if run is None:
                raise
    is_done(run, loaded, ())  # raises for another configuration; a finished run ends at once by itself
    if run.config_path.read_text() != dump_config(loaded.config):
        with run.lock():
            if not is_done(run, loaded, ()):
                reopen(run)
            rewrite_config(run, loaded.config)
    return run
