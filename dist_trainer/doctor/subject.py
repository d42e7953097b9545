"""What is examined: the configuration that says what a training needs, and the folders that it would use.

Parts of a configuration will do, such as a cluster's profile, and so will none: the defaults then count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config.command_line import split_arguments
from dist_trainer.config.load import load_config
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import Config
from dist_trainer.errors import UsageError
from dist_trainer.launchers.workers import guess_workers
from dist_trainer.run_folder import find_run
from dist_trainer.tracking.settings import resolve_uri

# what a machine is not asked for, and a configuration must have
_STAND_INS = (
    "{name: run, model: {target: stand.in}, data: {train: {target: stand.in}}, loss: {target: stand.in}, "
    "optimizer: {target: stand.in}}"
)


@dataclass(frozen=True)
class Subject:
    """Every path absolute."""

    config: Config
    runs: Path  # the folder of runs
    working_folder: Path  # where relative paths begin
    arguments: tuple[str, ...] = ()  # the command's, for the nodes to read again

    @property
    def workers(self) -> int:
        """Ranks on this machine."""
        return guess_workers(self.config)

    @property
    def store(self) -> str:
        """Where checkpoints go: a local folder, or a URL."""
        folder = self.config.checkpoint.folder
        if folder is None:
            return str(self.runs)
        place = str(resolve(folder))
        return place if "://" in place else str(self.working_folder / place)

    @property
    def tracking_uri(self) -> str | None:
        """MLflow's; None: the journal alone."""
        uri = self.config.tracking.uri
        return uri and resolve_uri(uri, self.working_folder)


def subject_of(arguments: Sequence[str], runs: Path) -> Subject:
    """A run by its name or folder, or what `train` would be given, or a part of it; either with KEY=VALUE over it."""
    files, values = split_arguments(arguments)
    given, folder = tuple(arguments), Path.cwd()
    if files and not Path(files[0]).is_file():
        if len(files) > 1:
            raise UsageError(f"one run, or files of a configuration, got {' '.join(files)}")
        run = find_run(files[0], runs)
        config = load_config([run.config_path], values, under=_STAND_INS).config
        return Subject(config, run.path.absolute().parent, run.info().working_folder, given)
    return Subject(load_config(files, values, under=_STAND_INS).config, runs.absolute(), folder, given)
