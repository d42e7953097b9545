"""What was committed, and whether its bytes are still those: reads a run's checkpoints and changes nothing."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from dist_trainer.adapters.storage import Buffer, Data, Storage, blocks
from dist_trainer.checkpoint.manifest import (
    COMMIT,
    MANIFEST,
    MANIFEST_LIMIT,
    QUARANTINE,
    Checkpoint,
    FileRecord,
    Manifest,
    commit_record,
    parse_name,
)
from dist_trainer.errors import CorruptCheckpoint, StorageError, UsageError


class CheckpointReader:
    """The checkpoints of one run in one folder; the protocol is that of checkpoint/store.py."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def list(self) -> list[Checkpoint]:
        """All that were committed and not quarantined, newest first; `info` is empty where unreadable."""
        return [checkpoint for checkpoint, quarantined in self.committed() if not quarantined]

    def committed(self) -> Sequence[tuple[Checkpoint, bool]]:
        """All that were committed, newest first, and whether each is in quarantine."""
        found = []
        for checkpoint in filter(None, map(parse_name, self.storage.list())):
            names = self.storage.list(checkpoint.name)
            if COMMIT in names:
                found.append((self._with_info(checkpoint), QUARANTINE in names))
        return sorted(found, reverse=True)

    def _with_info(self, checkpoint: Checkpoint) -> Checkpoint:
        try:
            return replace(checkpoint, info=self._manifest(checkpoint).info)
        except CorruptCheckpoint:
            return checkpoint

    def get(self, name: str) -> Checkpoint:
        """The checkpoint in that folder, listed or not. Raises UsageError where there is none."""
        checkpoint = parse_name(name)
        if checkpoint is not None and self._is_committed(name) and not self._is_quarantined(name):
            return self._with_info(checkpoint)
        there = ", ".join(checkpoint.name for checkpoint in self.list()) or "none"
        raise UsageError(f"{self.storage.url}: no checkpoint {name}; there: {there}")

    def _is_committed(self, name: str) -> bool:
        return self.storage.exists(f"{name}/{COMMIT}")

    def _is_quarantined(self, name: str) -> bool:
        return self.storage.exists(f"{name}/{QUARANTINE}")

    def read(self, checkpoint: Checkpoint) -> dict[str, Buffer]:
        """The content of every file, all digests checked. Raises CorruptCheckpoint."""
        files = {}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as beside:
            for name, record in self._manifest(checkpoint).files.items():
                with self._file(checkpoint, name) as path:
                    self._check_size(path, record.size)
                    files[name] = self._read_checked(path, record, beside)
        return files

    def _read_checked(self, path: str, record: FileRecord, beside: Executor) -> Buffer:
        """One file, whose digest is made while it is read."""
        hasher = hashlib.sha256()
        pending: list[Future[None]] = []
        content = self.storage.read(
            path, seen=lambda part: pending.append(beside.submit(hasher.update, part))
        )
        for each in pending:
            each.result()
        _check(FileRecord(len(content), hasher.hexdigest()), record)
        return content

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read and check every byte without keeping them. Raises CorruptCheckpoint."""
        for name, record in self._manifest(checkpoint).files.items():
            with self._file(checkpoint, name) as path:
                self._check_size(path, record.size)
                hasher, read = hashlib.sha256(), 0
                for block in self.storage.stream(path):
                    hasher.update(block)
                    read += len(block)
                _check(FileRecord(read, hasher.hexdigest()), record)

    def _manifest(self, checkpoint: Checkpoint) -> Manifest:
        with self._file(checkpoint, MANIFEST) as path:
            if self.storage.size(path) > MANIFEST_LIMIT:
                raise CorruptCheckpoint(f"larger than {MANIFEST_LIMIT} bytes")
            raw = bytes(self.storage.read(path))
        with self._file(checkpoint, COMMIT) as path:
            record = commit_record(raw)
            if self.storage.size(path) != len(record) or bytes(self.storage.read(path)) != record:
                raise CorruptCheckpoint(f"is not the marker of this {MANIFEST}")
        with self._file(checkpoint, MANIFEST):
            return Manifest.parse(raw, checkpoint)

    def _check_size(self, path: str, size: int) -> None:
        if (found := self.storage.size(path)) != size:
            raise CorruptCheckpoint(f"{found} bytes, {size} were committed")

    @contextmanager
    def _file(self, checkpoint: Checkpoint, name: str) -> Iterator[str]:
        where = f"{self._where(checkpoint)}/{name}"
        try:
            yield f"{checkpoint.name}/{name}"
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{where}: missing") from error
        except MemoryError as error:  # no reason to take it for a bad one
            raise StorageError(f"{where}: is larger than the memory there is") from error
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(f"{where}: {error}") from error

    def _where(self, checkpoint: Checkpoint) -> str:
        return f"{self.storage.url}/{checkpoint.name}"


def digest_of(data: Data) -> FileRecord:
    """Size and sha256."""
    hasher, size = hashlib.sha256(), 0
    for block in blocks(data):
        hasher.update(block)
        size += block.nbytes
    return FileRecord(size, hasher.hexdigest())


def _check(found: FileRecord, committed: FileRecord) -> None:
    if found != committed:
        raise CorruptCheckpoint(f"sha256 {found.sha256[:12]}..., {committed.sha256[:12]}... was committed")
