"""The folder that an export goes to: which files in it are its own, the work folder in it, and the move at the end.

An export's own files are those that its export.json names. One export at a time works in a folder, by a lock in it.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dist_trainer.adapters.file_lock import Owner, hold
from dist_trainer.adapters.files import make_private_folder, write_json
from dist_trainer.errors import UsageError
from dist_trainer.export.request import FILES, ONNX_WEIGHTS
from dist_trainer.run_folder import RunFolder

CARD = "export.json"
_NAMES = frozenset({*FILES.values(), ONNX_WEIGHTS})  # all that an export ever moves here
_LOCK, _WORK = ".dist-trainer-export.lock", ".dist-trainer-export-"
_UNFINISHED = "an export was cut short while its files were moved here; give the command again"


def check_place(run: RunFolder, folder: Path) -> None:
    """UsageError where a file stands that is of no earlier export of this run."""
    own = own_files(run, folder)
    foreign = [name for name in (*sorted(_NAMES), CARD) if name not in own and os.path.lexists(folder / name)]
    if foreign:
        raise UsageError(
            f"{folder / foreign[0]} is there already, and is no export of run {run.path.name}; move it away, or give "
            "another --output"
        )


def own_files(run: RunFolder, folder: Path) -> set[str]:
    """The files of an earlier export of this run, by its export.json; none where that is another run's."""
    try:
        found = json.loads((folder / CARD).read_text())
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(found, dict) or found.get("run_id") != run.info().run_id:
        return set()
    named = found.get("files")
    return {CARD} | (_NAMES & set(named) if isinstance(named, dict) else set())


@contextmanager
def work_folder(run: RunFolder, folder: Path) -> Iterator[Path]:
    """A folder of ours in `folder`, which is made; both are gone after a failure, if they were not there.

    What an export that was killed left there goes first. Raises UsageError where another one is at work, and as
    check_place does.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_private_folder(folder)
    try:
        with hold(folder / _LOCK, held=lambda owner: _busy(folder, owner)):
            try:
                check_place(run, folder)
                _clear(folder)
                yield Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))
            finally:
                _clear(folder)
                (folder / _LOCK).unlink(
                    missing_ok=True
                )  # while it is held: who waits for it looks for it again
    finally:
        for path in missing:
            with suppress(OSError):  # it has the export
                path.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.glob(f"{_WORK}*"):
        shutil.rmtree(path, ignore_errors=True)


def _busy(folder: Path, owner: Owner | None) -> UsageError:
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return UsageError(f"{folder}: {who} exports into it just now; wait for it, or give another --output")


def put(run: RunFolder, made: Path, card: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Move the files to where they belong, export.json last. The names of an earlier export's files that went.

    Until then an unfinished export.json names all that may be there, so whatever cuts this short, the next export
    knows its own. Raises as check_place does, for what came meanwhile.
    """
    check_place(run, folder)
    names = set(card["files"])
    gone = own_files(run, folder) - names - {CARD}
    meanwhile = dict.fromkeys(sorted(names | gone))
    write_json(folder / CARD, {"run_id": card["run_id"], "unfinished": _UNFINISHED, "files": meanwhile})
    for name in names:
        with (made / name).open("rb") as file:
            os.fsync(file.fileno())
        (made / name).replace(folder / name)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CARD, card)
    return tuple(sorted(gone))
