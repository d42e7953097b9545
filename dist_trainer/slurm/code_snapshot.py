"""A copy of a run's code, as it was when the run was submitted: what changes afterwards changes no job.

    <run>/code/0001/        every file at its place in the repository, or in the working folder where there is no git
    <run>/code/0001.json    {"commit", "dirty", "new", "files", "bytes", "top", "left_out", "digest"}
    <run>/code/0001.diff    git diff HEAD, and the new files as far as they are text and not large

`dirty`: whether the code is another than the commit's; `new` names the files that the commit does not hold.

The folder that stands for the working folder is therefore code/0001 itself or a folder in it. Code that is the
same as the snapshot's before needs no other one.
"""

import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters import git
from dist_trainer.adapters.files import replace_file, write_json
from dist_trainer.errors import UsageError
from dist_trainer.slurm.code_files import CodeFiles
from dist_trainer.slurm.code_patch import patch_of_new
from dist_trainer.slurm.script import Code


@dataclass(frozen=True)
class Snapshot:
    """Code and the folder that it is, or will be, copied to: <run>/code/0001."""

    code: CodeFiles
    path: Path
    digest: str
    is_there: bool

    @property
    def name(self) -> str:
        """As jobs.jsonl has it, relative to the run's folder."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def places(self) -> Code:
        """Where a job imports from."""
        folder, *path = (Path(os.path.normpath(self.path / name)) for name in self.code.import_folders)
        return Code(folder, path)


def plan_snapshot(run_folder: Path, code: CodeFiles, *, is_new: bool = False) -> Snapshot:
    """Which snapshot of the run this code is: the last one, or the next; of a new run the first. Writes nothing."""
    digest = _digest(code, code.top)
    there = [] if is_new else (run_folder / "code").glob("*.json")
    numbers = [int(path.stem) for path in there if path.stem.isdigit()]
    last = max(numbers, default=0)
    path = run_folder / "code" / f"{last:04d}"
    if last and _is_the_same(path, code, digest):
        return Snapshot(code, path, digest, is_there=True)
    return Snapshot(code, path.with_name(f"{last + 1:04d}"), digest, is_there=False)


def write_snapshot(snapshot: Snapshot) -> None:
    """Copy the code, unless it is there. UsageError names a file that cannot be read."""
    if snapshot.is_there:
        return
    path, code = snapshot.path, snapshot.code
    remove_snapshot(snapshot)  # what a submission that was killed has left
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    for name in code.import_folders:
        _make_folder(path / name)
    for name, source in code.files.items():
        _make_folder((path / name).parent)
        _copy(source, path / name)
    for name, target in code.links.items():
        _make_folder((path / name).parent)
        (path / name).symlink_to(target)
    if code.is_repository:
        replace_file(path.with_suffix(".diff"), git.difference(code.top) + patch_of_new(path, code.new))
    write_json(
        path.with_suffix(".json"),
        {
            **_version(code),
            "new": code.new,
            "files": len(code.files) + len(code.links),
            "bytes": code.bytes,
            "top": str(code.top),
            "left_out": code.left_out,
            "digest": snapshot.digest,
        },
    )


def _version(code: CodeFiles) -> dict[str, Any]:
    known = git.code_version(code.top) if code.is_repository else {}
    return {"commit": None, "dirty": None, **known, **({"dirty": True} if code.new else {})}


def remove_snapshot(snapshot: Snapshot) -> None:
    """Take back one that was written; one that was there before stays."""
    if not snapshot.is_there:
        for suffix in (".json", ".diff"):
            snapshot.path.with_suffix(suffix).unlink(missing_ok=True)
        shutil.rmtree(snapshot.path, ignore_errors=True)


def _is_the_same(path: Path, code: CodeFiles, digest: str) -> bool:
    """Whether the snapshot was of this code and still is what was written."""
    try:
        if json.loads(path.with_suffix(".json").read_text())["digest"] != digest:
            return False
        return _digest(code, path) == digest
    except (OSError, ValueError, KeyError, UsageError):
        return False


def _digest(code: CodeFiles, top: Path) -> str:
    """Of the names and contents, read under `top`: the code itself, or a copy of it."""
    total = hashlib.sha256(repr(sorted(code.links.items())).encode(errors="surrogateescape"))
    for name, source in sorted(code.files.items()):
        path = source if top == code.top else top / name
        with _readable(path), path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
            runs = bool(os.fstat(stream.fileno()).st_mode & stat.S_IXUSR)
        total.update(f"{name}\0{content}{runs:d}".encode(errors="surrogateescape"))
    return total.hexdigest()


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700)


def _copy(source: Path, target: Path) -> None:
    with _readable(source), source.open("rb") as stream:
        mode = 0o700 if os.fstat(stream.fileno()).st_mode & stat.S_IXUSR else 0o600
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)


class _readable:
    """Says which file it was that could not be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, OSError):
            why = f"{(error.strerror or '').lower()}; it is part of the code that is copied for the job"
            raise UsageError(f"{self._path}: {why}, unless you submit with --no-snapshot") from error
