"""Where a page goes, and that nothing of anybody else is written over there: our files carry a mark."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from dist_trainer.adapters.files import open_plain
from dist_trainer.diagnose.words import typed
from dist_trainer.errors import DataError, UsageError
from dist_trainer.report.facts import FOLDER
from dist_trainer.run_folder import RunFolder

PAGE = "index.html"
_MARKS = {  # page.html has the first, drawing.py writes the second
    ".html": b'<meta name="generator" content="dist-trainer report">',
    ".png": b"Software\0dist-trainer report",
}
_LONGEST = 160  # letters of a folder's name
_LOOKED_AT = 4096  # bytes, from the beginning


def default_folder(runs: Sequence[RunFolder]) -> Path:
    """A run's own report folder; for several, one beside the first run, which no other runs and no run have."""
    if len(runs) == 1:
        return runs[0].path / FOLDER
    name = f"report-{'+'.join(run.path.name for run in runs)}"  # no run has a plus in its name
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}+{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return runs[0].path.parent / name


def check_place(paths: Sequence[Path]) -> None:
    """UsageError where one of the files to write is there already, and no report wrote it."""
    for path in paths:
        if os.path.lexists(path) and not _is_ours(path):
            raise UsageError(
                f"{typed(path)} is there already, and no report wrote it; move it away, or give another --output"
            )


def _is_ours(path: Path) -> bool:
    try:
        with open_plain(path) as file:
            return _MARKS[path.suffix] in file.read(_LOOKED_AT)
    except (OSError, DataError):
        return False
