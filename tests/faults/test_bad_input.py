"""What is read is read or refused in one message, whatever is in it, within bounds of memory and time."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.checkpoint.header import HEADER_LIMIT, Entry, read_header, write_header
from dist_trainer.checkpoint.state import VALUES, VALUES_LIMIT, decode, encode
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.checkpoint.tensors import from_buffer
from dist_trainer.errors import CorruptCheckpoint, UsageError
from tests.faults.hostile_checkpoints import THE_ONE, files, manifest_of, put, store_of
from tests.faults.ledger import is_whole, record, times
from tests.launchers.processes import REPOSITORY

SEED = 4
FAULTS = {
    "configurations": "mutated configurations",
    "checkpoints": "mutated manifests and headers",
    "run-files": "mutated files of a run",
}


def give(kind: str, count: int, folder: Path) -> None:
    """Mutate and read in a process of its own, whose memory the kernel bounds; note what came of it."""
    seed = secrets.randbits(32) if is_whole() else SEED
    command = [sys.executable, "-m", "tests.faults.readers", kind, str(count), str(seed), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    tried, failures = found["tried"], found["failures"]
    lost, refused = len(failures), found["refused"]
    record(FAULTS[kind], tried=tried, lost=lost, note=f"{refused} refused, the others read; seed {seed}")
    assert not failures, failures[-1] + done.stderr
    assert tried >= count
    assert 0 < refused < tried


@pytest.mark.timeout(times(120, 1800))
def test_a_mutated_configuration_is_read_or_refused_in_words(tmp_path: Path) -> None:
    give("configurations", times(200, 1000), tmp_path)


@pytest.mark.timeout(times(120, 3600))
def test_a_mutated_checkpoint_is_read_or_refused_in_words(tmp_path: Path) -> None:
    give("checkpoints", times(1000, 10_000), tmp_path)


@pytest.mark.timeout(times(120, 3600))
def test_a_mutated_file_of_a_run_costs_one_message_and_no_traceback(tmp_path: Path) -> None:
    give("run-files", times(40, 1000), tmp_path)


def test_a_tensor_that_claims_more_than_its_bytes_is_not_made() -> None:
    """Zero bytes of a type that is stored as another: the last dimension is not the one that counts."""
    header = write_header(
        {"lie": Entry("F64", (2**28, 0), 0, 0)}, {"dist_trainer": '{"dtypes": {"lie": "complex128"}}'}
    )
    with pytest.raises(CorruptCheckpoint, match="is not 0 bytes"):
        from_buffer(header)


def test_more_tensors_than_are_read_back_are_never_written() -> None:
    name = "x" * 1000
    entries = {f"{name}{number}": Entry("U8", (0,), 0, 0) for number in range(HEADER_LIMIT // 1000)}
    with pytest.raises(UsageError, match="more than a checkpoint holds"):
        write_header(entries, {})
    start = (HEADER_LIMIT + 1).to_bytes(8, "little") + b" " * (HEADER_LIMIT + 1)
    with pytest.raises(CorruptCheckpoint, match="not a safetensors file"):
        read_header(start, len(start))


def test_values_larger_than_are_read_back_are_never_written() -> None:
    with pytest.raises(UsageError, match="keep what is large in it as tensors"):
        encode({"w": torch.ones(1)}, {"note": "x" * VALUES_LIMIT})
    with pytest.raises(CorruptCheckpoint, match="larger than"):
        decode({**files(), VALUES: b" " * (VALUES_LIMIT + 1)})


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("MANIFEST.json", "model.safetensors", "COMMIT.json"):
        content = files()
        put(tmp_path, content, manifest_of(content))
        (tmp_path / THE_ONE.name / name).unlink()
        os.mkfifo(tmp_path / THE_ONE.name / name)
        store: CheckpointStore = store_of(tmp_path)
        with pytest.raises(CorruptCheckpoint, match="missing"):
            store.read(THE_ONE)
