"""Pictures that others put into a run's report: PNG files in report/pictures/, as a hook of the user's writes them.

report/pictures/
  digit-3.png                  shown as it is, by name
  captions.json                {"digit-3.png": "A 3, seen as 3"}; may be missing, and so may a name in it
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.adapters.files import open_plain, refuse_link
from dist_trainer.config.redact import redact
from dist_trainer.diagnose.words import one_line
from dist_trainer.errors import DataError

FOLDER, CAPTIONS = "pictures", "captions.json"
_MOST = 40
_MOST_BYTES = 2 << 20  # of one; the page holds them
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class GivenPicture:
    """One file, as a data URI."""

    name: str
    caption: str
    uri: str


@dataclass(frozen=True)
class GivenPictures:
    """Those of a run, and how many more there are than a page shows."""

    shown: Sequence[GivenPicture]
    more: int


def files(folder: Path) -> tuple[list[Path], int]:
    """Those of a run's report folder by name, and how many more there are than a page shows.

    Raises DataError where a folder of these is a link.
    """
    for place in (folder, folder / FOLDER):
        refuse_link(place)
    try:
        found = sorted(Path(entry) for entry in os.scandir(folder / FOLDER) if entry.name.endswith(".png"))
    except FileNotFoundError:
        return [], 0
    return found[:_MOST], max(0, len(found) - _MOST)


def read(path: Path, captions: Mapping[str, str]) -> GivenPicture:
    """One of them. Raises DataError where it is no PNG of at most 2 MiB, or no plain file."""
    return GivenPicture(redact(one_line(path.name, 80)), captions.get(path.name, ""), _uri(path))


def _uri(path: Path) -> str:
    content = _content(path)
    if not content.startswith(_PNG):
        raise DataError(f"{path.name}: no PNG file")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _content(path: Path) -> bytes:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path.name}: {size} bytes; a page shows files of at most {_MOST_BYTES}")
        return file.read(_MOST_BYTES)


def captions(folder: Path) -> dict[str, str]:
    """By file name. Raises DataError where the file is of something else."""
    path = folder / FOLDER / CAPTIONS
    try:
        found = json.loads(_content(path))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: must be names and captions, got a {type(found).__name__}")
    return {str(name): redact(one_line(str(caption), 300)) for name, caption in found.items()}
