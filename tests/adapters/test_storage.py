import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_store import faulty_proxy

from dist_trainer.adapters.local_folder import LocalFolder, blocks
from dist_trainer.adapters.storage import Storage
from dist_trainer.errors import StorageError

Open = Callable[..., Storage]


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, open_storage: Open) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "run" / "checkpoints")
    if request.param == "memory":
        return open_storage(f"memory://{secrets.token_hex(4)}/checkpoints")
    return open_storage(request.getfixturevalue("bucket") + "/runs/a1")


def test_every_store_keeps_the_promises_of_a_commit(storage: Storage) -> None:
    storage.check_promises()
    assert storage.list() == []


def test_files_come_back_as_they_were_written(storage: Storage) -> None:
    parts = [b"head", memoryview(bytes(range(256))), b"", bytearray(b"x" * 100_000)]
    storage.write("folder/file.bin", parts)
    expected = b"".join(parts)
    assert bytes(storage.read("folder/file.bin")) == expected
    assert b"".join(bytes(block) for block in storage.stream("folder/file.bin")) == expected
    assert storage.size("folder/file.bin") == len(expected)
    assert storage.list() == ["folder"]
    assert storage.list("folder") == ["file.bin"]


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("folder/empty", b"")
    assert storage.exists("folder/empty")
    assert bytes(storage.read("folder/empty")) == b""
    assert list(storage.stream("folder/empty")) == []


def test_a_new_file_is_in_the_next_listing(storage: Storage) -> None:
    for number in range(3):
        storage.write(f"folder/{number}", b"x")
        assert storage.list("folder") == [str(n) for n in range(number + 1)]


def test_only_the_first_exclusive_create_succeeds(storage: Storage) -> None:
    storage.create_exclusive("marker", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("marker", b"second")
    assert bytes(storage.read("marker")) == b"first"
    assert storage.list() == ["marker"]


def test_what_is_deleted_is_gone_and_may_be_deleted_again(storage: Storage) -> None:
    storage.write("folder/a", b"x")
    storage.write("folder/b", b"x")
    for _ in range(2):
        storage.delete("folder/a")
        assert not storage.exists("folder/a")
    for _ in range(2):
        storage.delete_folder("folder")
        assert storage.list("folder") == []


def test_a_missing_file_is_file_not_found(storage: Storage) -> None:
    assert not storage.exists("nowhere/file")
    assert storage.list("nowhere") == []
    for read in (storage.read, storage.size, lambda name: list(storage.stream(name))):
        with pytest.raises(FileNotFoundError):
            read("nowhere/file")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../b", "a//b", "a\n", "a\0", "~", "a b", "./a"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path / "store")
    with pytest.raises(StorageError, match="not a name"):
        storage.write(name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_of_racing_processes_exactly_one_creates_the_file(tmp_path: Path) -> None:
    rounds, racers = 60, 3
    children = []
    for racer in range(racers):
        pid = os.fork()
        if pid == 0:
            folder = LocalFolder(tmp_path / "store")
            won = 0
            for number in range(rounds):
                try:
                    folder.create_exclusive(f"marker-{number}", f"racer {racer}".encode())
                    won |= 1 << number
                except FileExistsError:
                    pass
            (tmp_path / f"won-{racer}").write_text(str(won))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * racers
    wins = [int((tmp_path / f"won-{racer}").read_text()) for racer in range(racers)]
    for number in range(rounds):
        winners = [racer for racer in range(racers) if wins[racer] >> number & 1]
        assert len(winners) == 1
        assert (tmp_path / "store" / f"marker-{number}").read_bytes() == f"racer {winners[0]}".encode()
    assert len(list((tmp_path / "store").iterdir())) == rounds  # no temporary file is left


def test_of_racing_writers_to_s3_exactly_one_creates_the_object(bucket: str, open_storage: Open) -> None:
    stores = [open_storage(bucket) for _ in range(3)]
    won: list[tuple[int, int]] = []

    def race(racer: int) -> None:
        for number in range(8):
            try:
                stores[racer].create_exclusive(f"marker-{number}", f"racer {racer}".encode())
                won.append((number, racer))
            except FileExistsError:
                pass

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(8))
    for number, racer in won:
        assert bytes(stores[0].read(f"marker-{number}")) == f"racer {racer}".encode()


def test_where_hard_links_are_missing_the_create_is_exclusive_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    storage = Storage(tmp_path)
    storage.check_promises()
    storage.create_exclusive("marker", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("marker", b"second")
    assert storage.list() == ["marker"]


def test_where_hard_links_are_missing_a_full_disk_leaves_no_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        monkeypatch.setattr(os, "fsync", full)
        raise PermissionError(1, "Operation not permitted")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    storage = Storage(tmp_path)
    with pytest.raises(StorageError, match="No space left"):
        storage.create_exclusive("marker", b"first")
    assert storage.list() == []


def test_a_link_whose_reply_was_lost_is_recognised_as_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    Storage(tmp_path).create_exclusive("marker", b"first")
    assert (tmp_path / "marker").read_bytes() == b"first"


def test_a_full_disk_is_a_storage_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"folder/file: cannot write: No space left on device"):
        Storage(tmp_path).write("folder/file", b"x")


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    Storage(tmp_path).write("file", [b"a" * 100, b"b" * 200])
    assert (tmp_path / "file").read_bytes() == b"a" * 100 + b"b" * 200


def test_blocks_gather_what_is_small_and_cut_what_is_large() -> None:
    parts = [b"s" * 10] * 1000 + [b"L" * (20 << 20)] + [b"", b"e" * 3]
    got = list(blocks(parts))
    assert b"".join(got) == b"".join(parts)
    assert [block.nbytes for block in got] == [10_000, 8 << 20, 8 << 20, 4 << 20, 3]


def test_transient_failures_are_tried_again(s3_endpoint: str, bucket: str, open_storage: Open) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        storage = open_storage(bucket, options={"endpoint_url": proxy.url})
        proxy.faults.extend([500, "lose request", "pass", 503, "lose reply", "pass"])
        storage.write("first", b"one")
        storage.write("second", b"two")
        assert not proxy.faults
        assert (bytes(storage.read("first")), bytes(storage.read("second"))) == (b"one", b"two")
        storage.close()


def test_a_create_whose_reply_was_lost_is_recognised_as_our_own(
    s3_endpoint: str, bucket: str, open_storage: Open
) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        storage = open_storage(bucket, options={"endpoint_url": proxy.url})
        proxy.faults.extend(["lose reply"])
        storage.create_exclusive("marker", b"nonce-1")
        with pytest.raises(FileExistsError):
            storage.create_exclusive("marker", b"nonce-2")
        proxy.faults.extend(["lose reply"])
        with pytest.raises(FileExistsError):
            storage.create_exclusive("marker", b"nonce-3")
        assert bytes(storage.read("marker")) == b"nonce-1"
        storage.close()


def test_a_store_that_stays_down_is_an_error_and_never_an_empty_folder(
    s3_endpoint: str, bucket: str, open_storage: Open
) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        storage = open_storage(bucket, options={"endpoint_url": proxy.url})
        storage.write("file", b"x")
        storage.close()
    down = open_storage(bucket, options={"endpoint_url": proxy.url})
    for call in (
        lambda: down.list(),
        lambda: down.exists("file"),
        lambda: down.read("file"),
        lambda: down.write("other", b"x"),
        lambda: down.check_promises(),
    ):
        with pytest.raises(StorageError, match="tried 4 times"):
            call()


def test_a_large_object_goes_up_in_parts_and_is_read_in_ranges(bucket: str, open_storage: Open) -> None:
    storage = open_storage(bucket)
    block = secrets.token_bytes(1 << 20)
    storage.write("large", [block] * 60)
    assert storage.size("large") == 60 << 20
    assert b"".join(bytes(part) for part in storage.stream("large")) == block * 60


def test_a_missing_bucket_is_a_storage_error(bucket: str, open_storage: Open) -> None:
    with pytest.raises(StorageError, match="bucket"):
        open_storage("s3://no-such-bucket-here/x").check_promises()


def test_a_store_without_exclusive_creation_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: LocalFolder, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    monkeypatch.setattr(LocalFolder, "create_exclusive", overwrite)
    with pytest.raises(StorageError, match="two exclusive creates of one name both succeeded"):
        Storage(tmp_path).check_promises()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_of_url_is_a_storage_error_that_names_the_setting() -> None:
    with pytest.raises(StorageError, match=r"checkpoint\.folder: nosuch://x"):
        Storage("nosuch://x")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "https://x.example/a", "simplecache::s3://bucket/a"])
def test_what_cannot_be_written_to_is_refused_unopened(url: str) -> None:
    with pytest.raises(StorageError, match="not a store that can be written to"):
        Storage(url)


def test_messages_show_a_url_as_it_was_given(bucket: str, open_storage: Open) -> None:
    storage = open_storage(f"{bucket}-none", shown="s3://${env:PLACE}")
    with pytest.raises(StorageError) as raised:
        storage.write("file", b"x")
    assert str(raised.value).startswith("s3://${env:PLACE}/file: cannot write") and bucket not in str(
        raised.value
    )


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/store")
    storage.write("file", b"x")
    assert storage.is_local
    assert (tmp_path / "store" / "file").read_bytes() == b"x"
