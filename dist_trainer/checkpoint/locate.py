"""One checkpoint of any run, by what a person types: RUN, RUN@WHICH, or the folder of a checkpoint."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.checkpoint.manifest import Checkpoint, parse_name
from dist_trainer.checkpoint.reader import CheckpointReader
from dist_trainer.config.load import read_section
from dist_trainer.config.redact import redact
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint, UsageError
from dist_trainer.run_folder import RunFolder, find_run


@dataclass(frozen=True)
class Located:
    """A checkpoint and who reads it."""

    reader: CheckpointReader
    checkpoint: Checkpoint

    @property
    def where(self) -> str:
        """Its folder, for people."""
        return f"{self.reader.storage.url}/{self.checkpoint.name}"

    def verify(self) -> None:
        """Compare every byte with what was committed. Raises NoUsableCheckpoint."""
        try:
            self.reader.verify(self.checkpoint)
        except CorruptCheckpoint as error:
            raise NoUsableCheckpoint(f"{error}: a damaged checkpoint is compared with nothing") from error


def locate(text: str, runs: Path) -> Located:
    """The checkpoint that `text` means: `digits` and `digits@last` its newest, `digits@best`, `digits@1200`, or a
    folder such as runs/digits/checkpoints/step-000001200-f0001, which may be a URL. Raises UsageError."""
    parent, _, name = text.rstrip("/").rpartition("/")
    if parse_name(name) is not None:
        reader = CheckpointReader(Storage(parent or ".", shown=redact(parent)))
        return Located(reader, reader.get(name))
    run, which = _run_and_which(text, runs)
    settings = read_section(run.config_path, "checkpoint", CheckpointConfig)
    store = open_store(run, settings)
    try:
        return Located(store, choose(store.list(), which, settings))
    except UsageError as error:
        raise UsageError(str(error).replace("--checkpoint ", f"{run.path.name}@", 1)) from error


def _run_and_which(text: str, runs: Path) -> tuple[RunFolder, str]:
    with suppress(UsageError):  # a folder may have the sign in its name
        return find_run(text, runs), "last"
    name, sign, which = text.rpartition("@")
    return (find_run(name, runs), which) if sign else (find_run(text, runs), "last")
