"""Which source files and packages a rank trains with: what a node with an old copy has otherwise."""

import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

from dist_trainer.config.imports import code_folder
from dist_trainer.trained_code import digest_of

_PACKAGE = Path(__file__).parents[1]
_STANDARD = Path(platform.__file__).parent
_SCRIPT = ("__main__", "__mp_main__")


def source_files(objects: Iterable[object]) -> dict[str, str]:
    """A digest of each file of this package, and of each loaded module of the user's, by name.

    The user's are those in the working folder, or beside what `objects` were made by; what is installed has a
    version instead.
    """
    files = {path.relative_to(_PACKAGE.parent).as_posix(): path for path in _PACKAGE.rglob("*.py")}
    for name, path in _users(objects):
        files[path.name if name == "__main__" else f"{name} ({path.name})"] = path
    return _digests(files)


def users_files(objects: Iterable[object]) -> dict[str, str]:
    """A digest of each loaded module of the user's, by its file as the module's name gives it: nets/small.py."""
    files = {}
    for name, path in _users(objects):
        is_package = path.name == "__init__.py"
        place = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        files[path.name if name in _SCRIPT else place] = path
    return _digests(files)


def _users(objects: Iterable[object]) -> Iterator[tuple[str, Path]]:
    roots = _roots(objects)
    for name, module in sorted(sys.modules.items()):
        file = _file_of(module)
        if file.startswith(roots) and _is_own(file):
            yield name, Path(file)


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    found = {}
    for name, path in sorted(files.items()):
        with suppress(OSError):  # deleted since, by an update under our feet
            found[name] = digest_of(path)
    return found


def _roots(objects: Iterable[object]) -> tuple[str, ...]:
    """Folders with a slash at the end, as they are named and as they are on disk."""
    tops = {name.partition(".")[0] for name in _modules_of(objects)}
    files = [file for name in tops if _is_own(file := _file_of(sys.modules.get(name)))]
    folders = {code_folder(), *(Path(file).parent for file in files)}
    return tuple({f"{each}/" for folder in folders for each in (folder, folder.resolve())})


def _is_own(file: str) -> bool:
    """Neither installed nor Python's nor this package's: by text, for there are thousands of modules."""
    is_installed = "/site-packages/" in file or "/dist-packages/" in file
    return bool(file) and not is_installed and not file.startswith((f"{_STANDARD}/", f"{_PACKAGE}/"))


def _file_of(module: ModuleType | None) -> str:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and file.endswith(".py") else ""


def _modules_of(objects: Iterable[object]) -> set[str]:
    named = (thing if hasattr(thing, "__qualname__") else type(thing) for thing in objects)
    return {name for thing in named if isinstance(name := getattr(thing, "__module__", None), str)}


def versions(objects: Iterable[object]) -> dict[str, str]:
    """Of Python, torch and what it is built on, NumPy, this package, and the packages that `objects` come from."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        with suppress(Exception):  # a build without it
            found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    tops = {name.partition(".")[0] for name in _modules_of(objects)} | {"numpy", "dist_trainer"}
    for name in sorted(tops - {"builtins", "__main__", "torch"}):
        number = _version_of(name)
        if number is not None:
            found[name] = number
    return found


def _version_of(name: str) -> str | None:
    number = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(number, str):
        return number
    try:
        return metadata.distribution(name).version
    except metadata.PackageNotFoundError:
        return None
