"""The commit protocol: a checkpoint exists once its marker does, and is believed only after its digests are.

    step-000001200-f0003/        step 1,200, written by the attempt that holds fence 3
        model.safetensors        data first; the writer gives the files and their names
        training.safetensors
        training.json
        MANIFEST.json            {"format": 1, "step": 1200, "fence": 3, "nonce": ..., "info": {...},
                                  "files": {"model.safetensors": {"size": ..., "sha256": ...}, ...}}
        COMMIT.json              {"manifest_size": ..., "manifest_sha256": ...}: created exclusively, last
        QUARANTINE.json          {"reason": ...}: the bytes were found to differ; kept, and passed over

A folder without COMMIT.json does not exist. Every file is fsynced, then the folders, then the fence is
looked at, then COMMIT.json appears, whole or not at all. Nothing is ever renamed. The newest is the highest
(fence, step): an attempt that was overtaken cannot win even if it commits late.
"""

import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dist_trainer.adapters.storage import Buffer, Data, Storage
from dist_trainer.checkpoint.manifest import (
    COMMIT,
    MANIFEST,
    QUARANTINE,
    Checkpoint,
    Manifest,
    commit_record,
    parse_name,
)
from dist_trainer.checkpoint.reader import CheckpointReader, digest_of
from dist_trainer.checkpoint.retention import kept
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, FencedOut, NoUsableCheckpoint, StorageError

__all__ = ["Checkpoint", "CheckpointStore"]


class CheckpointStore(CheckpointReader):
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
        super().__init__(storage)
        self.fence = fence
        self._highest_fence = highest_fence
        self._report = report
        self._proven: set[str] = set()
        self._own: set[str] = set()  # committed here, or tried to

    def commit(self, step: int, files: Mapping[str, Data], info: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint; when this returns it is durable. One that this store committed is left as it is.

        Raises FencedOut where a newer attempt has taken over, StorageError where it could not be written:
        older checkpoints are untouched by that, and what was written of this one is removed.
        """
        checkpoint = Checkpoint(fence=self.fence, step=step, info=dict(info))
        if self._is_committed(checkpoint.name):
            if self._is_quarantined(checkpoint.name):
                raise StorageError(
                    f"{self._where(checkpoint)}: was damaged after its commit (see {QUARANTINE}), and a committed "
                    "checkpoint is never written over; look at the store: later steps are saved under other names"
                )
            if checkpoint.name not in self._own:
                raise self._not_alone(checkpoint)
            return self.get(checkpoint.name)
        self._check_fence()
        self.storage.delete_folder(checkpoint.name)  # of an earlier try: the fence in the name is ours
        try:
            manifest = self._write_data(checkpoint, files)
            self._check_fence()
            self._own.add(checkpoint.name)  # the marker may be there though its writing failed
            self.storage.create_exclusive(f"{checkpoint.name}/{COMMIT}", commit_record(manifest))
        except (StorageError, FileExistsError) as error:
            self._discard(checkpoint.name)
            if isinstance(error, FileExistsError):
                self._own.discard(checkpoint.name)
                raise self._not_alone(checkpoint) from error
            raise
        return checkpoint

    def _not_alone(self, checkpoint: Checkpoint) -> StorageError:
        return StorageError(
            f"{self._where(checkpoint)}: someone else writes here too, as a copy of the run folder would; "
            "give one of them another checkpoint.folder"
        )

    def _write_data(self, checkpoint: Checkpoint, files: Mapping[str, Data]) -> bytes:
        records = {}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as hasher:
            digests = {name: hasher.submit(digest_of, data) for name, data in files.items()}
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
            if not self._is_committed(name):
                self.storage.delete_folder(name)

    def newest_good(self, known: Collection[str] = ()) -> tuple[Checkpoint, dict[str, Buffer]] | None:
        """The newest one that is whole, with its files; None if none was ever committed.

        Bad ones on the way are quarantined. Where nothing else is good, those in quarantine are read again: one
        that was brought back from a copy, or that a passing fault had damaged, is used. The listing of a store
        may lag behind: `known` names checkpoints that were committed at some time, which are looked for directly.
        Raises NoUsableCheckpoint if there are some and none is good.
        """
        there, doubted = [], []
        for checkpoint, quarantined in self._candidates(known):
            there.append(checkpoint.name)
            if quarantined:
                doubted.append(checkpoint)
                continue
            try:
                return checkpoint, self.read(checkpoint)
            except CorruptCheckpoint as error:
                self.set_aside(checkpoint, error)
        for checkpoint in doubted:
            with suppress(CorruptCheckpoint):
                files = self.read(checkpoint)
                self._set_free(checkpoint)
                return checkpoint, files
        if any(map(self._is_committed, there)):
            raise NoUsableCheckpoint(
                f"{self.storage.url}: {len(there)} checkpoints and none is whole (see QUARANTINE.json in "
                f"each); bring one back from a copy, all of its files, or start over with --fresh"
            )
        return None

    def _candidates(self, known: Collection[str]) -> Iterator[tuple[Checkpoint, bool]]:
        """The committed ones newest first, and whether they are quarantined; asks only for what is iterated."""
        listed = dict(self.committed())
        named = set(filter(None, map(parse_name, known)))
        for checkpoint in sorted(listed.keys() | named, reverse=True):
            if checkpoint in listed:
                yield checkpoint, listed[checkpoint]
            elif self._is_committed(checkpoint.name):
                yield self._with_info(checkpoint), self._is_quarantined(checkpoint.name)

    def set_aside(self, checkpoint: Checkpoint, error: CorruptCheckpoint) -> None:
        """Put one in quarantine whose bytes were found to differ, and report it."""
        if not self._is_committed(checkpoint.name):
            return  # its owner was deleting it while we read
        self._report(f"{error}; put in quarantine, using the one before it")
        record = json.dumps({"reason": str(error), "nonce": secrets.token_hex(16)}, indent=1).encode() + b"\n"
        with suppress(FileExistsError):
            try:
                self.storage.create_exclusive(f"{checkpoint.name}/{QUARANTINE}", record)
            except StorageError as refused:  # a reader without the right to write still passes it over
                self._report(str(refused))

    def _set_free(self, checkpoint: Checkpoint) -> None:
        self._report(f"{self._where(checkpoint)}: is whole again, and taken out of quarantine")
        with suppress(StorageError):  # as above
            self.storage.delete(f"{checkpoint.name}/{QUARANTINE}")

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
            self.remove(checkpoint)
        self._clear_leftovers()
        return [checkpoint.name for checkpoint in doomed]

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete one, whatever it is; who calls it has proven what stays."""
        self.storage.delete(f"{checkpoint.name}/{COMMIT}")
        self.storage.sync_folder(checkpoint.name)  # half deleted, it must not come back as committed
        self.storage.delete_folder(checkpoint.name)

    def _prove(self, checkpoint: Checkpoint) -> None:
        if checkpoint.name in self._proven:
            return
        try:
            self.verify(checkpoint)
        except CorruptCheckpoint as error:
            self.set_aside(checkpoint, error)
            raise
        self._proven.add(checkpoint.name)

    def _clear_leftovers(self) -> None:
        for checkpoint in filter(None, map(parse_name, self.storage.list())):
            name = checkpoint.name
            if checkpoint.fence >= self.fence or {COMMIT, QUARANTINE} & set(self.storage.list(name)):
                continue
            # a listing may lag behind the marker: what is deleted for having none is asked itself
            if not self._is_committed(name) and not self._is_quarantined(name):
                self.storage.delete_folder(name)
