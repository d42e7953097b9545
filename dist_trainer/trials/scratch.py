"""The folder of a trial, hidden below the runs, and its checkpoints elsewhere: all of it goes with the trial."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.config.load import load_config
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError
from dist_trainer.run_folder import RunFolder


@contextmanager
def scratch_folder(runs: Path, kind: str, name: str) -> Iterator[Path]:
    """`runs`/.`kind`/`name`-..., for as long as the context lasts."""
    parent = runs.absolute() / f".{kind}"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in (parent, parent.parent):
            with suppress(OSError):  # another trial may be there, or the user's runs
                folder.rmdir()


def clear_store(run: RunFolder) -> None:
    """Remove a trial's checkpoints where they are not in its folder; says where that fails."""
    config = load_config([run.config_path]).config
    if config.checkpoint.folder is None:
        return
    try:
        open_store(run, config.checkpoint).storage.delete_folder("")
    except (OSError, DistTrainerError) as error:
        where = run.checkpoint_url(config.checkpoint.folder, shown=True)
        print(redact(f"warning: the trial's checkpoints are left in {where}: {error}"), file=sys.stderr)
