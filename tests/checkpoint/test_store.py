"""The commit protocol: what was committed is found whole, whatever happened since."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from object_store import faulty_proxy

from dist_trainer.adapters.local_folder import LocalFolder
from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.inspection import inspect
from dist_trainer.checkpoint.manifest import Checkpoint, parse_name
from dist_trainer.checkpoint.retention import best, kept
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.config.schema import BestConfig, CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, FencedOut, NoUsableCheckpoint, StorageError, UsageError
from dist_trainer.run_folder import RunFolder

KEEP_ONE = CheckpointConfig(keep_last=1)


def content(step: int) -> dict[str, bytes]:
    return {
        "model.safetensors": random.Random(step).randbytes(30_000),
        "training.safetensors": random.Random(-step).randbytes(9_000),
        "training.json": json.dumps({"step": step}).encode(),
    }


class Run:
    """A run's checkpoints, and what was reported about them."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.highest = 1
        self.reports: list[str] = []

    def store(self, fence: int) -> CheckpointStore:
        self.highest = max(self.highest, fence)
        return CheckpointStore(
            self.storage, fence=fence, highest_fence=lambda: self.highest, report=self.reports.append
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Storage(tmp_path / "checkpoints"))


def same(files: Mapping[str, Any], step: int) -> bool:
    return {name: bytes(data) for name, data in files.items()} == content(step)


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_the_newest_is_found_whole_in_every_store(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, open_storage: Callable[..., Storage]
) -> None:
    urls: dict[str, Callable[[], object]] = {
        "local": lambda: tmp_path / "checkpoints",
        "memory": lambda: f"memory://{tmp_path.name}/run",
        "s3": lambda: request.getfixturevalue("bucket") + "/folder/run-1",
    }
    run = Run(open_storage(urls[kind]()))
    store = run.store(1)
    assert store.newest_good() is None
    for step in (100, 200, 300):
        store.commit(step, content(step), {"metrics": {"val/loss": 1.0 / step}})
    assert [checkpoint.step for checkpoint in store.list()] == [300, 200, 100]
    found = store.newest_good()
    assert found is not None and same(found[1], 300)
    assert found[0].metrics == {"val/loss": 1.0 / 300}
    store.verify(found[0])
    assert store.retain(KEEP_ONE) == ["step-000000200-f0001", "step-000000100-f0001"]
    assert run.storage.list() == ["step-000000300-f0001"]
    assert not run.reports


def test_the_highest_fence_wins_over_the_highest_step(run: Run) -> None:
    old, new = run.store(1), None
    old.commit(900, content(900), {})
    new = run.store(2)
    new.commit(500, content(500), {})
    found = new.newest_good()
    assert found is not None and found[0].name == "step-000000500-f0002"


def test_an_overtaken_writer_is_fenced_out(run: Run) -> None:
    old = run.store(1)
    old.commit(100, content(100), {})
    run.store(2)
    with pytest.raises(FencedOut, match="attempt 2 of this run has taken over from attempt 1"):
        old.commit(200, content(200), {})
    assert [checkpoint.step for checkpoint in old.list()] == [100]
    assert old.retain(KEEP_ONE) == []


def test_a_writer_overtaken_while_it_writes_is_fenced_out_before_its_marker(run: Run) -> None:
    old = run.store(1)

    class Overtaken(dict[str, bytes]):
        def items(self) -> Any:
            run.highest = 2
            return super().items()

    with pytest.raises(FencedOut):
        old.commit(200, Overtaken(content(200)), {})
    folder = "step-000000200-f0001"
    assert run.storage.exists(f"{folder}/MANIFEST.json") and not run.storage.exists(f"{folder}/COMMIT.json")
    new = run.store(2)
    assert new.newest_good() is None
    new.retain(KEEP_ONE)
    assert run.storage.list() == []


def test_what_a_living_attempt_has_not_committed_is_left_alone(run: Run) -> None:
    run.storage.write("step-000000100-f0001/model.safetensors", b"x")
    run.storage.write("step-000000100-f0002/model.safetensors", b"x")
    run.storage.write("step-000000100-f0003/model.safetensors", b"x")
    run.store(2).retain(KEEP_ONE)
    assert run.storage.list() == ["step-000000100-f0002", "step-000000100-f0003"]


@pytest.mark.parametrize(
    "name",
    [
        "step-100-f1", "step-000000100-f1", "step-0000000100-f0001", "step-000000100-f0001 ", "tmp",
        "step-000000100-f0001.tmp", "Step-000000100-f0001", "step-00000010٣-f0001", "step-000000100-f00001",
        "step-000000100-f0001\n", "step--00000100-f0001", "step-000000100-f0001-copy", ".probe-1",
    ],
)  # fmt: skip
def test_other_names_are_ignored(name: str, run: Run, tmp_path: Path) -> None:
    assert parse_name(name) is None
    run.store(1).commit(100, content(100), {})
    shutil.copytree(tmp_path / "checkpoints/step-000000100-f0001", tmp_path / "checkpoints" / name)
    assert len(run.store(1).list()) == 1


def test_names_are_those_that_sort_by_step() -> None:
    assert Checkpoint(fence=3, step=1200).name == "step-000001200-f0003"
    assert parse_name("step-000001200-f0003") == Checkpoint(fence=3, step=1200)
    assert parse_name(Checkpoint(fence=12345, step=10**10).name) == Checkpoint(fence=12345, step=10**10)


FILES = ["model.safetensors", "training.safetensors", "training.json", "MANIFEST.json", "COMMIT.json"]


def damages(data: bytes, other: bytes) -> list[bytes]:
    chance = random.Random(len(data))
    flips = []
    for _ in range(25):
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        flips.append(bytes(flipped))
    page = chance.randrange(0, len(data), 4096)
    zeroed = data[:page] + bytes(len(data[page : page + 4096])) + data[page + 4096 :]
    cut = [data[:size] for size in (0, 1, len(data) // 2, len(data) - 1)]
    return [damaged for damaged in (*flips, *cut, zeroed, data + b"\0", other) if damaged != data]


@pytest.mark.parametrize("file", FILES)
def test_every_damage_to_any_file_is_seen(file: str, run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    store.commit(100, content(100), {"metrics": {"val/loss": 0.5}})
    newest = store.commit(200, content(200), {"metrics": {"val/loss": 0.25}})
    path = tmp_path / "checkpoints" / newest.name / file
    data = path.read_bytes()
    other = (tmp_path / "checkpoints/step-000000100-f0001" / file).read_bytes()
    for damaged in damages(data, other):
        path.write_bytes(damaged)
        for check in (store.read, store.verify):
            with pytest.raises(CorruptCheckpoint, match=newest.name):
                check(newest)
    path.unlink()
    if file != "COMMIT.json":
        with pytest.raises(CorruptCheckpoint, match=f"{file}: missing"):
            store.read(newest)
    path.write_bytes(data)
    assert same(store.read(newest), 200)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_one_is_quarantined_and_the_one_before_is_used(file: str, run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    store.commit(100, content(100), {})
    newest = store.commit(200, content(200), {})
    path = tmp_path / "checkpoints" / newest.name / file
    path.write_bytes(path.read_bytes()[:-2] + b"??")
    found = store.newest_good()
    assert found is not None and found[0].step == 100 and same(found[1], 100)
    assert len(run.reports) == 1 and f"{newest.name}/" in run.reports[0] and "quarantine" in run.reports[0]
    assert [checkpoint.step for checkpoint in store.list()] == [100]
    reason = json.loads((path.parent / "QUARANTINE.json").read_text())["reason"]
    assert newest.name in reason
    run.store(2).retain(KEEP_ONE)
    assert path.exists()  # kept for a look at it


def test_swapped_files_and_swapped_folders_are_seen(run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    store.commit(100, content(100), {})
    newest = store.commit(200, content(200), {})
    folder = tmp_path / "checkpoints" / newest.name
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "training.safetensors").rename(folder / "model.safetensors")
    (folder / "x").rename(folder / "training.safetensors")
    with pytest.raises(CorruptCheckpoint):
        store.read(newest)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "checkpoints/step-000000100-f0001", folder)
    with pytest.raises(CorruptCheckpoint, match="not the manifest of step-000000200-f0001"):
        store.read(newest)


def test_where_none_is_good_training_never_starts_from_scratch(run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    for step in (100, 200):
        path = tmp_path / "checkpoints" / store.commit(step, content(step), {}).name / "model.safetensors"
        path.write_bytes(b"x" * 30_000)
    for attempt in (1, 2):  # also when they are in quarantine already
        with pytest.raises(NoUsableCheckpoint, match="2 checkpoints and none is whole"):
            run.store(attempt).newest_good()


def test_one_that_was_brought_back_is_used_where_no_other_is_good(run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    paths = [
        tmp_path / "checkpoints" / store.commit(step, content(step), {}).name / "model.safetensors"
        for step in (100, 200)
    ]
    copy = paths[0].read_bytes()
    for path in paths:
        path.write_bytes(b"x" * 30_000)
    with pytest.raises(NoUsableCheckpoint):
        run.store(2).newest_good()
    assert [quarantined for _, quarantined in store.committed()] == [True, True] and not store.list()
    paths[0].write_bytes(copy)
    found = run.store(3).newest_good()
    assert found is not None and found[0].step == 100 and same(found[1], 100)
    assert "whole again" in run.reports[-1]
    assert [checkpoint.step for checkpoint in store.list()] == [100]


def test_another_run_that_saves_under_the_same_names_is_found_out(run: Run) -> None:
    """A copy of a run folder has the same id and the same next fence."""
    run.store(1).commit(100, content(100), {})
    with pytest.raises(StorageError, match="someone else writes here too, as a copy of the run folder"):
        run.store(1).commit(100, content(999), {})
    found = run.store(1).newest_good()
    assert found is not None and same(found[1], 100)


def test_one_damaged_after_its_commit_is_not_committed_again_by_the_same_attempt(
    run: Run, tmp_path: Path
) -> None:
    store = run.store(1)
    for step in (1, 2):
        newest = store.commit(step, content(step), {})
    (tmp_path / "checkpoints" / newest.name / "training.json").write_bytes(b"[]")
    with pytest.raises(CorruptCheckpoint):
        store.retain(KEEP_ONE)
    with pytest.raises(StorageError, match="was damaged after its commit"):
        store.commit(2, content(2), {})
    assert store.commit(3, content(3), {}).step == 3
    assert [checkpoint.step for checkpoint in store.list()] == [3, 1]


def test_a_store_that_cannot_be_read_is_no_reason_to_quarantine(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run.store(1)
    store.commit(100, content(100), {})

    def refused(*_: object) -> bytes:
        raise TimeoutError(110, "Connection timed out")

    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "read", refused)
        with pytest.raises(StorageError, match="Connection timed out"):
            store.newest_good()
    assert store.newest_good() is not None


def test_a_checkpoint_that_is_being_deleted_is_not_quarantined(run: Run, tmp_path: Path) -> None:
    reader = run.store(1)
    reader.commit(100, content(100), {})
    newest = reader.commit(200, content(200), {})
    read = reader.read

    def deleted_meanwhile(checkpoint: Checkpoint) -> Any:
        if checkpoint == newest:
            shutil.rmtree(tmp_path / "checkpoints" / newest.name)
        return read(checkpoint)

    reader.read = deleted_meanwhile  # type: ignore[method-assign]
    found = reader.newest_good()
    assert found is not None and found[0].step == 100
    assert not run.reports


def test_a_hostile_manifest_is_a_corrupt_checkpoint(run: Run, tmp_path: Path) -> None:
    from dist_trainer.checkpoint.manifest import MANIFEST_LIMIT, commit_record

    store = run.store(1)
    newest = store.commit(100, content(100), {})
    folder = tmp_path / "checkpoints" / newest.name
    good = json.loads((folder / "MANIFEST.json").read_bytes())
    record = {"size": 1, "sha256": "0" * 64}
    for document in [
        [], {}, {**good, "files": []}, {**good, "files": {"../x": record}}, {**good, "files": {"a/b": record}},
        {**good, "files": {"x": {}}}, {**good, "files": {"x": {**record, "more": 1}}}, {**good, "step": 7},
        {**good, "files": {"COMMIT.json": record}}, {**good, "files": {"x": {**record, "size": "1"}}},
        {**good, "format": 9}, {**good, "info": 3}, {**good, "info": {"$": "?"}}, {**good, "files": {"x": None}},
    ]:  # fmt: skip
        raw = json.dumps(document).encode()
        (folder / "MANIFEST.json").write_bytes(raw)
        (folder / "COMMIT.json").write_bytes(commit_record(raw))
        with pytest.raises(CorruptCheckpoint):
            store.read(newest)
    with (folder / "MANIFEST.json").open("r+b") as file:
        file.truncate(MANIFEST_LIMIT + 1)
    with pytest.raises(CorruptCheckpoint, match="larger than"):
        store.read(newest)
    assert store.list()[0].info == {}  # unreadable, it is still there


def test_a_failed_commit_leaves_nothing_and_the_next_one_works(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run.store(1)
    store.commit(100, content(100), {})
    write = LocalFolder.write
    for failing in ("training.json", "MANIFEST.json"):

        def full(self: LocalFolder, name: str, data: Any, failing: str = failing) -> None:
            if name.endswith(failing):
                raise OSError(28, "No space left on device")
            write(self, name, data)

        with monkeypatch.context() as patched:
            patched.setattr(LocalFolder, "write", full)
            with pytest.raises(StorageError, match=f"{failing}: cannot write: No space left"):
                store.commit(200, content(200), {})
        assert run.storage.list() == ["step-000000100-f0001"]
    store.commit(200, content(200), {})
    found = store.newest_good()
    assert found is not None and same(found[1], 200)


def test_a_step_that_is_committed_already_is_left_as_it_is(run: Run) -> None:
    store = run.store(1)
    store.commit(100, content(100), {"note": "first"})
    again = store.commit(100, content(999), {"note": "second"})
    assert again.info == {"note": "first"} and same(store.read(again), 100)


def test_a_lost_reply_to_the_marker_on_s3_is_a_commit(
    s3_endpoint: str, bucket: str, open_storage: Callable[..., Storage]
) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        storage = open_storage(bucket, options={"endpoint_url": proxy.url})
        store = Run(storage).store(1)
        # three files and the manifest pass, then the marker arrives and its reply does not
        proxy.faults.extend([500, "pass", "lose request", "pass", "pass", 503, "pass", "lose reply"])
        store.commit(100, content(100), {})
        found = store.newest_good()
        assert found is not None and same(found[1], 100)
        storage.close()


def test_nothing_is_deleted_before_the_newest_is_proven(run: Run, tmp_path: Path) -> None:
    store = run.store(1)
    store.commit(100, content(100), {})
    newest = store.commit(200, content(200), {})
    path = tmp_path / "checkpoints" / newest.name / "model.safetensors"
    path.write_bytes(bytes(30_000))
    with pytest.raises(CorruptCheckpoint):
        store.retain(KEEP_ONE)
    assert [checkpoint.step for checkpoint in store.list()] == [100]
    assert store.retain(KEEP_ONE) == []
    store.commit(300, content(300), {})
    assert store.retain(KEEP_ONE) == ["step-000000100-f0001"]


def test_a_metric_that_is_no_float_counts_as_none() -> None:
    said = {"metrics": {"huge": 10**400, "text": "0.1", "true": True, "whole": 3, "good": 0.5}}
    checkpoint = Checkpoint(1, 100, said)
    assert checkpoint.metrics == {"whole": 3.0, "good": 0.5}
    assert best([checkpoint], BestConfig(metric="huge", mode="max")) is None


def test_what_is_kept_is_the_last_the_best_and_every_nth(run: Run) -> None:
    store = run.store(1)
    for step, accuracy in ((100, 0.0), (200, 0.9), (300, float("nan")), (400, 0.5), (500, 0.5), (600, 0.1)):
        store.commit(step, content(step), {"metrics": {"val/accuracy": accuracy}})
    config = CheckpointConfig(
        keep_last=2, keep_best=BestConfig(metric="val/accuracy", mode="max"), keep_every_steps=300
    )
    deleted = store.retain(config, keep={"step-000000100-f0001"})
    assert deleted == ["step-000000400-f0001"]
    assert [checkpoint.step for checkpoint in store.list()] == [600, 500, 300, 200, 100]


def scored(*values: float | None) -> list[Checkpoint]:
    checkpoints = [
        Checkpoint(1, step, {"metrics": {} if value is None else {"m": value}})
        for step, value in enumerate(values)
    ]
    return checkpoints[::-1]


@pytest.mark.parametrize(
    ("mode", "values", "step"),
    [
        ("min", (0.5, 0.0, 0.2), 1),
        ("max", (-1.0, 0.0, -0.5), 1),
        ("min", (None, 3.0, None), 1),
        ("min", (float("nan"), 3.0, float("inf")), 1),
        ("max", (1.0, 1.0, 0.0), 1),
        ("max", (float("nan"), None), None),
    ],
)
def test_the_best_is_a_number_and_of_equals_the_newest(
    mode: Any, values: tuple[float | None, ...], step: int | None
) -> None:
    found = best(scored(*values), BestConfig(metric="m", mode=mode))
    assert (found.step if found else None) == step


def test_the_newest_is_always_kept() -> None:
    checkpoints = scored(1.0, 2.0, 3.0)
    assert checkpoints[0].name in kept(checkpoints, CheckpointConfig(keep_last=1, keep_every_steps=10**6))
    assert kept([], CheckpointConfig()) == set()


def test_a_checkpoint_is_found_by_name(run: Run) -> None:
    store = run.store(1)
    store.commit(100, content(100), {"note": (1, 2)})
    assert store.get("step-000000100-f0001").info == {"note": (1, 2)}
    with pytest.raises(UsageError, match="no checkpoint step-000000300-f0001; there: step-000000100-f0001"):
        store.get("step-000000300-f0001")


def test_a_summary_names_every_tensor(run: Run) -> None:
    import torch

    from dist_trainer.checkpoint.state import encode

    store = run.store(3)
    files = encode({"weight": torch.zeros(2, 3)}, {"ema": {"weight": torch.zeros(4, dtype=torch.bfloat16)}})
    checkpoint = store.commit(100, files, {"metrics": {"val/loss": 0.0}})
    summary = inspect(checkpoint, store.read(checkpoint))
    assert (summary.step, summary.fence, summary.metrics) == (100, 3, {"val/loss": 0.0})
    assert [(t.file, t.name, t.dtype, t.shape, t.size_bytes) for t in summary.tensors] == [
        ("model.safetensors", "weight", "F32", (2, 3), 24),
        ("training.safetensors", "training.ema.weight", "BF16", (4,), 8),
    ]
    assert summary.size_bytes == sum(summary.files.values())


def test_a_run_that_took_the_folders_place_shuts_out_the_one_before(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "run", "", working_folder=tmp_path)
    for _ in range(5):
        fence = first.new_fence({})
    store = open_store(first, KEEP_ONE, fence=fence)
    store.commit(1, content(1), {})
    first.path.rename(tmp_path / "run-old-1")
    again = RunFolder.create(tmp_path / "run", "", working_folder=tmp_path)
    with pytest.raises(FencedOut):
        store.commit(2, content(2), {})
    assert open_store(again, KEEP_ONE).list() == []
