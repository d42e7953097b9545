"""The final model's file, wherever the run's checkpoints are."""

import hashlib
import json
import re
from contextlib import nullcontext
from pathlib import Path

from dist_trainer.adapters.storage import Storage
from dist_trainer.errors import CorruptCheckpoint

_STEP_FOLDER = re.compile(r"step-(\d+)-f(\d+)")
_MODEL = "model.safetensors"


def final_model(place: str, *, shown: str = "", carried: str | None, into: Path) -> tuple[str, Path] | None:
    """The newest committed checkpoint's name, and its model's file: fetched `into` a folder from a remote store.

    None where there is no checkpoint, or the newest is the one `carried` already. A quarantined one does not
    count. Raises StorageError, CorruptCheckpoint where the file is not what was committed.
    """
    storage = Storage(place, shown=shown)
    try:
        name = _newest(storage)
        if name is None or name == carried:
            return None
        try:
            return name, _verified(storage, name, into / _MODEL)
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{storage.url}/{name}: a file is missing: {error}") from error
    finally:
        storage.close()


def _newest(storage: Storage) -> str | None:
    found = []
    for name in storage.list():
        match = _STEP_FOLDER.fullmatch(name)
        files = storage.list(name) if match else []
        if match and "COMMIT.json" in files and "QUARANTINE.json" not in files:
            found.append((int(match[2]), int(match[1]), name))
    return max(found)[2] if found else None


def _verified(storage: Storage, name: str, target: Path) -> Path:
    """The model's file with every byte compared: where it lies if that is here, else fetched to `target`."""
    expected, digest = _committed_digest(storage, name), hashlib.sha256()
    with nullcontext() if storage.is_local else target.open("wb") as file:
        for block in storage.stream(f"{name}/{_MODEL}"):
            digest.update(block)
            if file is not None:
                file.write(block)
    if digest.hexdigest() != expected:
        raise CorruptCheckpoint(f"{storage.url}/{name}/{_MODEL} is not what was committed")
    return Path(re.sub(r"^(file|local)://", "", storage.url)) / name / _MODEL if storage.is_local else target


def _committed_digest(storage: Storage, name: str) -> str:
    """The model's sha256 by the manifest that the marker vouches for."""
    manifest = bytes(storage.read(f"{name}/MANIFEST.json"))
    try:
        marker = json.loads(bytes(storage.read(f"{name}/COMMIT.json")))
        if marker["manifest_sha256"] != hashlib.sha256(manifest).hexdigest():
            raise ValueError("the marker is not that of the manifest")
        return str(json.loads(manifest)["files"][_MODEL]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{storage.url}/{name}: is not what was committed: {error!r}") from error
