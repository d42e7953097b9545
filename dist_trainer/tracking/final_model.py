"""The final model's file, wherever the run's checkpoints are."""

import hashlib
import json
import re
from pathlib import Path

from dist_trainer.adapters.storage import Storage
from dist_trainer.errors import CorruptCheckpoint

_STEP_FOLDER = re.compile(r"step-(\d+)-f(\d+)")
_MODEL = "model.safetensors"


def final_model(place: str, *, carried: str | None, into: Path) -> tuple[str, Path] | None:
    """The newest committed checkpoint's name, and its model's file: fetched `into` a folder from a remote store.

    None where there is no checkpoint, or the newest is the one `carried` already. A quarantined one does not
    count. Raises StorageError, CorruptCheckpoint where what was fetched is not what was committed.
    """
    storage = Storage(place)
    try:
        name = _newest(storage)
        if name is None or name == carried:
            return None
        if storage.is_local:
            return name, Path(re.sub(r"^file://", "", storage.url)) / name / _MODEL
        return name, _fetch(storage, name, into / _MODEL)
    finally:
        storage.close()


def _newest(storage: Storage) -> str | None:
    found = []
    for name in storage.list():
        match = _STEP_FOLDER.fullmatch(name)
        files = storage.list(name) if match else []
        if match and {"COMMIT.json", _MODEL} <= set(files) and "QUARANTINE.json" not in files:
            found.append((int(match[2]), int(match[1]), name))
    return max(found)[2] if found else None


def _fetch(storage: Storage, name: str, target: Path) -> Path:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for block in storage.stream(f"{name}/{_MODEL}"):
            digest.update(block)
            file.write(block)
    manifest = json.loads(bytes(storage.read(f"{name}/MANIFEST.json")))
    if digest.hexdigest() != manifest["files"][_MODEL]["sha256"]:
        raise CorruptCheckpoint(f"{storage.url}/{name}/{_MODEL} is not what was committed")
    return target
