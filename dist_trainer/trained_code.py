"""Which source files of the user's a run was last trained with: a digest of each, in its folder.

    <run>/trained-code.json    {"attempt": 2, "files": {"nets/small.py": "0123456789abcdef"}}

A file is named as its module is, not by where it lies: the copy of the code that a job runs is the same code.
Needs no torch and imports nothing of the user's.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.records import read_record
from dist_trainer.config.near import first_few

FILE = "trained-code.json"
_NAME = re.compile(r"[\w-]+(/[\w-]+)*[.]py")  # never one above the folder, and fit to be shown


@dataclass(frozen=True)
class TrainedCode:
    """The digests of the user's files, by name, as an attempt found them."""

    attempt: int
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r:.80} is no module's file")

    def changed_to(self, files: Mapping[str, str]) -> str:
        """`the code has changed since attempt 1: nets/small.py`; empty where it has not.

        A file that only one side knows is none: which modules are loaded depends on more than the code.
        """
        names = sorted(name for name, digest in self.files.items() if files.get(name, digest) != digest)
        return f"the code has changed since attempt {self.attempt}: {first_few(names)}" if names else ""


def digest_of(path: Path) -> str:
    """Of a source file's content. Raises OSError."""
    return blake2b(path.read_bytes(), digest_size=8).hexdigest()


def read_trained_code(run: Path) -> TrainedCode | None:
    """What the newest attempt that wrote it was trained with; None where nothing can be known of it."""
    with suppress(OSError, ValueError):
        return read_record(TrainedCode, (run / FILE).read_bytes())
    return None


def write_trained_code(run: Path, attempt: int, files: Mapping[str, str]) -> None:
    """Replace what is kept; what is named as no module's file is left out. Raises OSError."""
    kept = {name: digest for name, digest in files.items() if _NAME.fullmatch(name)}
    write_json(run / FILE, asdict(TrainedCode(attempt, kept)))


def changed_in(run: Path, folder: Path) -> str:
    """What `changed_to` says of the files as they now lie in the user's folder; nothing is imported."""
    code = read_trained_code(run)
    if code is None:
        return ""
    found = {}
    for name in code.files:
        with suppress(OSError):  # a module from elsewhere, or deleted since
            if (path := folder / name).is_file():
                found[name] = digest_of(path)
    return code.changed_to(found)
