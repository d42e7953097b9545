"""Whether the checkpoints' store, where it is not in the run folder, keeps the promises that a commit needs."""

import re
from collections.abc import Iterator
from pathlib import Path

from dist_trainer.adapters.storage import Storage
from dist_trainer.doctor.file_system import nearest
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.subject import Subject
from dist_trainer.errors import StorageError

NAME = "checkpoints"
_RETRY_DELAYS_S = (0.3,)


def check_store(subject: Subject) -> Iterator[Finding]:
    """Create exclusively, read back, list and delete one small file."""
    shown = subject.config.checkpoint.folder
    if shown is None:
        yield Finding(NAME, "fine", "in the run folder")
        return
    url = subject.store
    if "://" not in url:  # a run makes a folder that is missing
        url = str(nearest(Path(url)))
    try:
        storage = Storage(url, shown=shown, retry_delays_s=_RETRY_DELAYS_S)
        try:
            storage.check_promises()
        finally:
            storage.close()
    except (StorageError, ImportError, ValueError) as error:
        words = re.sub(r"/\.probe-\w+", "", str(error)).partition("; ")[0]
        yield Finding(NAME, "broken", words, _advice(url, str(error)))
        return
    yield Finding(NAME, "fine", f"{shown}: exclusive create, reading back, listing, deleting")


def _advice(url: str, words: str) -> str:
    if (advice := words.partition("; ")[2]) and "pip install" in advice:
        return advice
    if "://" not in url:
        return "checkpoint.folder: choose a folder that you may write to, with room"
    return (
        "checkpoint.folder: make the bucket, or mend its name; login and endpoint are the store's own variables "
        "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
    )
