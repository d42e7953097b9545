"""Which files are the code of a run: those of the repository that the working folder is in.

Tracked and new ones; what git ignores is left out, but for files that the targets' import has just read (a
generated `_version.py`). Without git: what looks like source under the working folder.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from dist_trainer.adapters import git
from dist_trainer.errors import UsageError

MAX_NEW_BYTES = 10_000_000  # of one file that git does not know: data rather than code
MAX_FILES, MAX_BYTES = 20_000, 500_000_000
MAX_WALKED_FILES, MAX_WALKED_BYTES = 2_000, 50_000_000

_CACHES = {"__pycache__", ".ipynb_checkpoints", "node_modules", ".venv", "venv", "mlruns", "mlartifacts"}
_LEFT_BEHIND = ("*.pyc", "mlflow.db*", "slurm-*.out")
# by their names no code, and nothing to have copies of
_SECRETS = (
    *(
        ".env",
        ".env.*",
        ".netrc",
        ".pgpass",
        "*.pem",
        "*.key",
        "*.p12",
        "id_rsa*",
        "id_ed25519*",
        "id_ecdsa*",
    ),
    *("credentials", "credentials.*", "*_credentials.json", "secrets.*", ".git-credentials"),
)
_SOURCE = {
    *(".py", ".pyi", ".pyx", ".so", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".sh", ".md", ".txt"),
    *(".yaml", ".yml", ".json", ".toml", ".ini", ".cfg"),
}


@dataclass
class CodeFiles:
    """`files` and `links` by their names relative to `top`: what is copied, and where a link points to in there."""

    top: Path
    working_folder: str  # relative to top
    files: dict[str, Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    import_folders: list[str] = field(default_factory=list)  # relative to top, the working folder first
    new: list[str] = field(default_factory=list)  # of these what the repository's commits do not hold
    left_out: list[str] = field(default_factory=list)
    is_repository: bool = False

    @property
    def bytes(self) -> int:
        """Of all files together; one that has just vanished is an error later, when it is read."""
        total = 0
        for path in self.files.values():
            with suppress(OSError):
                total += path.stat().st_size
        return total


def find_code(working_folder: Path, *, runs: Path, modules: Sequence[tuple[str, Path]] = ()) -> CodeFiles:
    """The code around a working folder; `modules` are the (name, file) pairs that its targets import.

    The folder of runs is none of it. Raises UsageError where it is too much to be code.
    """
    working_folder, runs = Path(os.path.realpath(working_folder)), Path(os.path.realpath(runs))
    top = git.top_folder(working_folder)
    code = _walked(working_folder, runs) if top is None else _listed(top, working_folder, runs)
    if top is not None and not _holds(code, code.working_folder):
        walked = _walked(working_folder, runs)  # ignored by a repository further up: somebody's home, say
        code = walked if walked.files else code
    _add_modules(code, modules)
    most, size = (MAX_FILES, MAX_BYTES) if code.is_repository else (MAX_WALKED_FILES, MAX_WALKED_BYTES)
    _refuse_too_much(code, most, size)
    return code


def _listed(top: Path, working_folder: Path, runs: Path) -> CodeFiles:
    code = CodeFiles(top, os.path.relpath(working_folder, top), is_repository=True)
    tracked, new = git.tracked_and_new(top)
    outside = _run_folders(top, [*tracked, *new]) | _environments(new)
    if runs != top and not top.is_relative_to(runs) and runs.is_relative_to(top):
        outside.add(os.path.relpath(runs, top))
    is_new = set(new)
    _sort_out(code, [name for name in (*tracked, *new) if not _is_in(name, outside)], is_new)
    code.new = sorted(is_new & (code.files.keys() | code.links.keys()))
    return code


def _walked(working_folder: Path, runs: Path) -> CodeFiles:
    code, names = CodeFiles(working_folder, "."), []
    for place, folders, files in os.walk(working_folder):
        inside = Path(place)
        links = [name for name in folders if (inside / name).is_symlink()]
        folders[:] = sorted(
            name for name in folders if name not in links and _may_hold_code(inside / name, runs)
        )
        there = [*links, *(name for name in files if Path(name).suffix in _SOURCE)]
        names += [os.path.relpath(inside / name, working_folder) for name in there]
        if len(names) > MAX_WALKED_FILES:
            break
    _sort_out(code, names, set(names))
    return code


def _may_hold_code(folder: Path, runs: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in _CACHES
    return not (hidden or folder == runs or (folder / "pyvenv.cfg").exists() or (folder / "fence").is_dir())


def _run_folders(top: Path, names: Sequence[str]) -> set[str]:
    found = {str(Path(name).parent) for name in names if Path(name).name == "run.json"}
    return {name for name in found if name != "." and (top / name / "fence").is_dir()}


def _environments(names: Sequence[str]) -> set[str]:
    """Python environments that git was not told to ignore."""
    found = {str(Path(name).parent) for name in names if Path(name).name == "pyvenv.cfg"}
    found |= {str(Path(name).parents[1]) for name in names if name.endswith("conda-meta/history")}
    return found - {"."}


def _is_in(name: str, folders: set[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _sort_out(code: CodeFiles, names: Sequence[str], new: set[str]) -> None:
    links = []
    for name in names:
        path = code.top / name
        try:
            found = path.lstat()
        except OSError:  # tracked, and deleted
            continue
        if name in new and _is_left_behind(name):
            continue
        if stat.S_ISLNK(found.st_mode):
            links.append(name)
        elif stat.S_ISREG(found.st_mode):
            if name in new and _holds_secrets(name):
                code.left_out.append(f"{name} (by its name it holds secrets)")
            elif name in new and found.st_size > MAX_NEW_BYTES:
                code.left_out.append(f"{name} ({found.st_size / 1e6:.0f} MB, not in git)")
            else:
                code.files[name] = path
    folders = {str(folder) for name in code.files for folder in Path(name).parents}
    for name in links:
        if name not in folders:  # else git knows files there, and the folder was since replaced by a link
            _place_link(code, name, folders, is_new=name in new)


def _holds_secrets(name: str) -> bool:
    return any(fnmatchcase(Path(name).name, text) for text in _SECRETS) and not name.endswith((".py", ".pyi"))


def _is_left_behind(name: str) -> bool:
    parts = Path(name).parts
    return bool(_CACHES & set(parts)) or any(fnmatchcase(parts[-1], text) for text in _LEFT_BEHIND)


def _place_link(code: CodeFiles, name: str, folders: set[str], *, is_new: bool) -> None:
    """A link to a file or a folder of the code stays one, a file from elsewhere is copied, a folder is left out.

    A new one is no way around the names of secrets: neither its own, nor of anything that it leads to.
    """
    path = code.top / name
    real = Path(os.path.realpath(path))
    target = os.path.relpath(real, code.top)
    if target in code.files or target in folders:
        code.links[name] = os.path.relpath(real, path.parent)
    elif is_new and real.exists() and any(_holds_secrets(step) for step in _way(path)):
        code.left_out.append(f"{name} (a link to {real}, by a name it holds secrets)")
    elif real.is_file() and real.stat().st_size <= MAX_NEW_BYTES:
        code.files[name] = real
    elif real.exists():
        code.left_out.append(f"{name} (a link to {real})")


def _way(link: Path) -> list[str]:
    """The link, each link that it leads to, and the file at the end, which exists."""
    way = [link]
    while way[-1].is_symlink():
        way.append(way[-1].parent / way[-1].readlink())
    return [str(step) for step in (*way, link.resolve())]


def _holds(code: CodeFiles, folder: str) -> bool:
    return folder == "." or any(name.startswith(f"{folder}/") for name in (*code.files, *code.links))


def _add_modules(code: CodeFiles, modules: Sequence[tuple[str, Path]]) -> None:
    """What was imported belongs to it, ignored or not; and the folder each came from is one to import from."""
    code.import_folders = [code.working_folder]
    elsewhere = set()
    for name, file in modules:
        parts = name.split(".")
        levels = len(parts) if file.stem == "__init__" else len(parts) - 1
        folder = file.parents[levels]
        if not file.is_relative_to(code.top):
            elsewhere.add(str(folder / parts[0]))
            continue
        inside = os.path.relpath(file, code.top)
        if inside not in code.files and not _is_in(inside, set(code.links)) and file.is_file():
            code.files[inside] = file
            if code.is_repository:
                code.new.append(inside)
        if (place := os.path.relpath(folder, code.top)) not in code.import_folders:
            code.import_folders.append(place)
    elsewhere.discard(str(Path(__file__).parents[1]))  # this package, where it is not installed but linked
    code.left_out += [f"{place} (imported from outside {code.top})" for place in sorted(elsewhere)]


def _refuse_too_much(code: CodeFiles, most: int, size: int) -> None:
    if len(code.files) <= most and code.bytes <= size:
        return
    ignore = "have git ignore what is no code" if code.is_repository else "put the code under git"
    raise UsageError(
        f"the code in {code.top} is {len(code.files)} files of {code.bytes / 1e6:.0f} MB, more than a snapshot takes "
        f"({most} files, {size / 1e6:.0f} MB): {ignore}, or submit with --no-snapshot"
    )
