"""What git says of a folder; a machine without git is no error."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dist_trainer.errors import UsageError

_LIST_S = 60.0


def code_version(folder: Path) -> dict[str, Any]:
    """The git commit of `folder` and whether tracked files differ from it; nothing where there is no git."""
    try:
        commit = git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git(folder, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints; OSError without git, SubprocessError where it fails."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def top_folder(folder: Path) -> Path | None:
    """The repository that `folder` is in; None outside one and without git. UsageError where git refuses."""
    if shutil.which("git") is None:
        return None
    done = _git(folder, "rev-parse", "--show-toplevel")
    if done.returncode == 0:
        return Path(os.fsdecode(done.stdout.removesuffix(b"\n")))
    said = done.stderr.decode(errors="replace").strip()
    if re.search("not a git repository|must be run in a work tree", said):
        return None
    raise UsageError(f"git refuses {folder}: {said}")


def tracked_and_new(top: Path, inside: str = "") -> tuple[list[str], list[str]]:
    """The files of a repository, relative to `top`: those that git knows, and those it neither knows nor ignores.

    Submodules and repositories inside it count with theirs.
    """
    folder = top / inside
    tracked = _names(folder, "ls-files", "-z", "--cached", "--deduplicate")
    new = _names(folder, "ls-files", "-z", "--others", "--exclude-standard")
    found: tuple[list[str], list[str]] = ([], [])
    for names, kept in zip((tracked, new), found, strict=True):
        for name in names:
            path = f"{inside}{name}".rstrip("/")
            if (top / path / ".git").exists() and not (top / path).is_symlink():
                inner = tracked_and_new(top, f"{path}/")
                found[0].extend(inner[0])
                found[1].extend(inner[1])
            else:
                kept.append(path)
    return found


def difference(folder: Path) -> bytes:
    """What differs from HEAD in the files that git knows, as a patch; empty before the first commit."""
    return _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv").stdout


def _names(folder: Path, *arguments: str) -> list[str]:
    done = _git(folder, *arguments)
    if done.returncode:
        raise UsageError(f"git cannot list {folder}: {done.stderr.decode(errors='replace').strip()}")
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [
        "env",
        "LC_ALL=C",
        "git",
        "--no-optional-locks",
        "-C",
        str(folder),
        *arguments,
    ]  # we read its words
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_LIST_S)
    except subprocess.TimeoutExpired:
        raise UsageError(f"git {arguments[0]} takes longer than {_LIST_S:.0f} s in {folder}") from None
