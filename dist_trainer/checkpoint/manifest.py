"""A checkpoint's name, its manifest and its marker: what they say, and how they are checked. No torch."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dist_trainer.checkpoint.structure import NOT_AS_WRITTEN, pack, unpack
from dist_trainer.errors import CorruptCheckpoint

MANIFEST, COMMIT, QUARANTINE = "MANIFEST.json", "COMMIT.json", "QUARANTINE.json"
MANIFEST_LIMIT = 4 << 20  # to parse what is hostile takes fifty times its size
FORMAT = 1
_FOLDER = re.compile(r"step-([0-9]{9,18})-f([0-9]{4,9})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint, ordered by (fence, step); `info` is what its writer said about it."""

    fence: int
    step: int
    info: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Its folder."""
        return f"step-{self.step:09d}-f{self.fence:04d}"

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's results at that step; without what is no number that fits into a float."""
        metrics, found = self.info.get("metrics"), {}
        for name, value in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(name, str) and type(value) in (int, float):
                with suppress(OverflowError):
                    found[name] = float(value)
        return found


def parse_name(name: str) -> Checkpoint | None:
    """The checkpoint that a folder's name stands for; None for any name that we would not have written."""
    if match := _FOLDER.fullmatch(name):
        checkpoint = Checkpoint(fence=int(match[2]), step=int(match[1]))
        if checkpoint.name == name:
            return checkpoint
    return None


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its size in bytes and its digest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint, and what its writer says about it."""

    files: dict[str, FileRecord]
    info: dict[str, Any]

    def to_bytes(self, checkpoint: Checkpoint) -> bytes:
        """The content of MANIFEST.json; no two are equal, which makes the marker one of a kind."""
        document = {
            "format": FORMAT,
            "step": checkpoint.step,
            "fence": checkpoint.fence,
            "nonce": secrets.token_hex(16),
            "info": pack(self.info, path="info"),
            "files": {name: vars(record) for name, record in self.files.items()},
        }
        return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"

    @staticmethod
    def parse(raw: bytes, checkpoint: Checkpoint) -> "Manifest":
        """What `to_bytes` wrote for this checkpoint. Raises CorruptCheckpoint."""
        try:
            document = json.loads(raw)
            head = tuple(document[key] for key in ("format", "step", "fence"))
            files = {name: _record(name, entry) for name, entry in document["files"].items()}
            info = unpack(document["info"])
        except NOT_AS_WRITTEN as error:
            raise CorruptCheckpoint(f"not readable: {error!r}") from error
        if head != (FORMAT, checkpoint.step, checkpoint.fence) or not isinstance(info, dict):
            raise CorruptCheckpoint(f"format, step, fence are {head}: not the manifest of {checkpoint.name}")
        return Manifest(files, info)


def _record(name: str, entry: Mapping[str, Any]) -> FileRecord:
    record = FileRecord(**entry)
    if not _FILE.fullmatch(name) or name in (MANIFEST, COMMIT, QUARANTINE):
        raise ValueError(f"not a file of a checkpoint: {name!r}")
    if type(record.size) is not int or not _SHA256.fullmatch(record.sha256):
        raise ValueError(f"{name}: {entry}")
    return record


def commit_record(manifest: bytes) -> bytes:
    """The content of COMMIT.json: a function of the manifest alone, so a reader can compare every byte."""
    sha256 = hashlib.sha256(manifest).hexdigest()
    return json.dumps({"manifest_size": len(manifest), "manifest_sha256": sha256}).encode() + b"\n"
