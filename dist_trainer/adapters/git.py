"""What git says of a folder; a machine without git is no error."""

import subprocess
from pathlib import Path
from typing import Any


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
