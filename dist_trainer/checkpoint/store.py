"""The commit protocol: a checkpoint exists once its marker does, and is believed only after its digests are.

    step-000001200-f0003/        step 1,200, written by the attempt that holds fence 3
        model.safetensors        data first; the writer gives the files and their names
        training.safetensors
        training.json
        MANIFEST.json            {"format": 1, "step": 1200, "fence": 3, "nonce": ..., "info": {...},
                                  "files": {"model.safetensors": {"size": ..., "sha256": ...}, ...}}
        COMMIT.json              {"manifest_size": ..., "manifest_sha256": ...}: created exclusively, last
        QUARANTINE.json          {"reason": ...}: the bytes were found to differ; kept, never used again

A folder without COMMIT.json does not exist. Every file is fsynced, then the folders, then the fence is
looked at, then COMMIT.json appears, whole or not at all. Nothing is ever renamed. The newest is the highest
(fence, step): an attempt that was overtaken cannot win even if it commits late.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

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
from dist_trainer.checkpoint.retention import kept
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, FencedOut, NoUsableCheckpoint, StorageError, UsageError

__all__ = ["Checkpoint", "CheckpointStore"]


class CheckpointStore:
    """The checkpoints of one run in one folder.

    `fence` is the attempt's number and `highest_fence()` the newest attempt's; a tool that only reads passes
    0. `report(message)` hears of checkpoints that were found bad, on whichever thread found them.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        fence: int,
        highest_fence: Callable[[], int],
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.storage = storage
        self.fence = fence
        self._highest_fence = highest_fence
        self._report = report
        self._proven: set[str] = set()

    def commit(self, step: int, files: Mapping[str, Data], info: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint; when this returns it is durable. One that is there already is left as it is.

        Raises FencedOut where a newer attempt has taken over, StorageError where it could not be written:
        older checkpoints are untouched by that, and what was written of this one is removed.
        """
        checkpoint = Checkpoint(fence=self.fence, step=step, info=dict(info))
        if self.storage.exists(f"{checkpoint.name}/{COMMIT}"):
            if self.storage.exists(f"{checkpoint.name}/{QUARANTINE}"):
                raise StorageError(
                    f"{self._where(checkpoint)}: was damaged after its commit (see {QUARANTINE}), and a committed "
                    "checkpoint is never written over; look at the store: later steps are saved under other names"
                )
            return self.get(checkpoint.name)
        self._check_fence()
        self.storage.delete_folder(checkpoint.name)  # of an earlier try: the fence in the name is ours
        try:
            manifest = self._write_data(checkpoint, files)
            self._check_fence()
            self.storage.create_exclusive(f"{checkpoint.name}/{COMMIT}", commit_record(manifest))
        except (StorageError, FileExistsError) as error:
            self._discard(checkpoint.name)
            if isinstance(error, FileExistsError):
                raise StorageError(f"{self._where(checkpoint)}: someone else writes here too") from error
            raise
        return checkpoint

    def _write_data(self, checkpoint: Checkpoint, files: Mapping[str, Data]) -> bytes:
        records = {}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as hasher:
            digests = {name: hasher.submit(_digest, data) for name, data in files.items()}
            for name, data in files.items():
                self.storage.write(f"{checkpoint.name}/{name}", data)
                records[name] = digests[name].result()
        manifest = Manifest(records, checkpoint.info).to_bytes(checkpoint)
        self.storage.write(f"{checkpoint.name}/{MANIFEST}", manifest)
        self.storage.sync_folder(checkpoint.name)
        self.storage.sync_folder()
        return manifest

    def _check_fence(self) -> None:
        highest = self._highest_fence()
        if highest > self.fence:
            raise FencedOut(
                f"attempt {highest} of this run has taken over from attempt {self.fence}, "
                f"which may not save any more; nothing is lost, let the newer one run"
            )

    def _discard(self, name: str) -> None:
        # a full disk needs the room; but where the marker may have arrived, the data has to stay
        with suppress(StorageError):
            if not self.storage.exists(f"{name}/{COMMIT}"):
                self.storage.delete_folder(name)

    def list(self) -> list[Checkpoint]:
        """All that were committed and not quarantined, newest first; `info` is empty where unreadable."""
        return [checkpoint for checkpoint, quarantined in self._committed() if not quarantined]

    def _committed(self) -> Sequence[tuple[Checkpoint, bool]]:
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
        """The checkpoint in that folder. Raises UsageError where there is none."""
        for checkpoint in self.list():
            if checkpoint.name == name:
                return checkpoint
        there = ", ".join(checkpoint.name for checkpoint in self.list()) or "none"
        raise UsageError(f"{self.storage.url}: no checkpoint {name}; there: {there}")

    def read(self, checkpoint: Checkpoint) -> dict[str, Buffer]:
        """The content of every file, all digests checked. Raises CorruptCheckpoint."""
        files = {}
        for name, record in self._manifest(checkpoint).files.items():
            with self._file(checkpoint, name) as path:
                self._check_size(path, record.size)
                files[name] = self.storage.read(path)
                _check(_digest(files[name]), record)
        return files

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

    def newest_good(self) -> tuple[Checkpoint, dict[str, Buffer]] | None:
        """The newest one that is whole, with its files; None if none was ever committed.

        Bad ones on the way are quarantined. Raises NoUsableCheckpoint if there are some and none is good.
        """
        committed = self._committed()
        for checkpoint, quarantined in committed:
            if quarantined:
                continue
            try:
                return checkpoint, self.read(checkpoint)
            except CorruptCheckpoint as error:
                self._quarantine(checkpoint, error)
        if committed and any(self.storage.exists(f"{c.name}/{COMMIT}") for c, _ in committed):
            raise NoUsableCheckpoint(
                f"{self.storage.url}: {len(committed)} checkpoints and none is whole (see QUARANTINE.json in "
                f"each); bring one back from a copy, or start over with --fresh"
            )
        return None

    def _quarantine(self, checkpoint: Checkpoint, error: CorruptCheckpoint) -> None:
        if not self.storage.exists(f"{checkpoint.name}/{COMMIT}"):
            return  # its owner was deleting it while we read
        self._report(f"{error}; put in quarantine, using the one before it")
        record = json.dumps({"reason": str(error), "nonce": secrets.token_hex(16)}, indent=1).encode() + b"\n"
        with suppress(FileExistsError):
            try:
                self.storage.create_exclusive(f"{checkpoint.name}/{QUARANTINE}", record)
            except StorageError as refused:  # a reader without the right to write still passes it over
                self._report(str(refused))

    def retain(self, config: CheckpointConfig, keep: Collection[str] = ()) -> Sequence[str]:
        """Delete what the configuration does not keep (nor `keep`, by name); returns the deleted names.

        Nothing goes before the newest one's every byte has been read back; where that fails it is
        quarantined, and CorruptCheckpoint raised. Also clears away what older attempts left uncommitted.
        """
        if self._highest_fence() > self.fence:
            return []  # the newer attempt decides
        checkpoints = self.list()
        wanted = kept(checkpoints, config) | set(keep)
        doomed = [c for c in checkpoints if c.name not in wanted and c.fence <= self.fence]
        if doomed:
            self._prove(checkpoints[0])
        for checkpoint in doomed:
            self.storage.delete(f"{checkpoint.name}/{COMMIT}")
            self.storage.sync_folder(checkpoint.name)  # half deleted, it must not come back as committed
            self.storage.delete_folder(checkpoint.name)
        self._clear_leftovers()
        return [checkpoint.name for checkpoint in doomed]

    def _prove(self, checkpoint: Checkpoint) -> None:
        if checkpoint.name in self._proven:
            return
        try:
            self.verify(checkpoint)
        except CorruptCheckpoint as error:
            self._quarantine(checkpoint, error)
            raise
        self._proven.add(checkpoint.name)

    def _clear_leftovers(self) -> None:
        for checkpoint in filter(None, map(parse_name, self.storage.list())):
            if checkpoint.fence < self.fence and not {COMMIT, QUARANTINE} & set(
                self.storage.list(checkpoint.name)
            ):
                self.storage.delete_folder(checkpoint.name)

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
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(f"{where}: {error}") from error

    def _where(self, checkpoint: Checkpoint) -> str:
        return f"{self.storage.url}/{checkpoint.name}"


def _digest(data: Data) -> FileRecord:
    hasher, size = hashlib.sha256(), 0
    for block in blocks(data):
        hasher.update(block)
        size += block.nbytes
    return FileRecord(size, hasher.hexdigest())


def _check(found: FileRecord, committed: FileRecord) -> None:
    if found != committed:
        raise CorruptCheckpoint(f"sha256 {found.sha256[:12]}..., {committed.sha256[:12]}... was committed")
