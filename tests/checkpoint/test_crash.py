"""SIGKILL at every call that touches the disk, and the order of syncs that a power failure needs."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_store import KEEP_ONE, Run, content, same

from dist_trainer.adapters.storage import Storage

CALLS = ("open", "write", "fsync", "close", "link", "unlink", "mkdir", "rmdir")
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def die_at_call(budget: int) -> None:
    """From the `budget`th of CALLS on, this process is dead; a write dies half way."""

    def counting(name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal budget
            budget -= 1
            if budget == 0:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return call

    for name in CALLS:
        setattr(os, name, counting(name, getattr(os, name)))


def child(folder: Path, budget: int, acknowledged: Path) -> None:
    write = os.write
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    die_at_call(budget)
    store = Run(Storage(folder)).store(1)
    for step in (200, 300):
        store.commit(step, content(step), {})
        write(told, f"{step}\n".encode())
        store.retain(KEEP_ONE)


def fork_and_wait(folder: Path, budget: int, acknowledged: Path) -> bool:
    """Whether the child got to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            child(folder, budget, acknowledged)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status == 0


@forks
def test_killed_at_any_call_the_last_commit_is_found_and_the_next_one_works(tmp_path: Path) -> None:
    budget, finished = 0, False
    while not finished:
        budget += 2  # the two commits in the child are hit at other places
        folder, acknowledged = tmp_path / f"run-{budget}", tmp_path / "acknowledged"
        Run(Storage(folder)).store(1).commit(100, content(100), {})
        finished = fork_and_wait(folder, budget, acknowledged)
        told = [int(line) for line in acknowledged.read_text().split()]
        run = Run(Storage(folder))
        store = run.store(2)
        found = store.newest_good()
        assert found is not None and found[0].step >= max(told, default=100), budget
        assert same(found[1], found[0].step)
        assert not run.reports
        store.commit(400, content(400), {})
        store.retain(KEEP_ONE)
        assert run.storage.list() == ["step-000000400-f0002"]
    assert budget > 60


@forks
def test_killed_in_its_first_commit_a_run_starts_from_scratch(tmp_path: Path) -> None:
    for budget in range(1, 34):
        folder = tmp_path / f"run-{budget}"
        fork_and_wait(folder, budget, tmp_path / "acknowledged")
        found = Run(Storage(folder)).store(2).newest_good()
        told = (tmp_path / "acknowledged").read_text()
        assert found is not None or not told


def test_all_is_synced_before_the_marker_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the link, a power failure may lose nothing that the marker vouches for."""
    unsynced_files: set[str] = set()
    unsynced_folders: set[str] = set()
    at_link: list[set[str]] = []
    real = {name: getattr(os, name) for name in ("open", "fsync", "link", "mkdir")}

    def path_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def spy_open(path: Any, flags: int, *rest: Any, **keywords: Any) -> int:
        descriptor: int = real["open"](path, flags, *rest, **keywords)
        if flags & os.O_CREAT:
            unsynced_files.add(path_of(descriptor))
            unsynced_folders.add(str(Path(path).parent))
        return descriptor

    def spy_fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        unsynced_files.discard(path_of(descriptor))
        unsynced_folders.discard(path_of(descriptor))

    def spy_mkdir(path: Any, *rest: Any, **keywords: Any) -> None:
        real["mkdir"](path, *rest, **keywords)
        unsynced_folders.add(str(Path(path).parent))

    def spy_link(source: Any, target: Any) -> None:
        # the marker's own temporary name may get lost; its content may not
        at_link.append(unsynced_files | (unsynced_folders - {str(Path(target).parent)}))
        real["link"](source, target)
        unsynced_folders.add(str(Path(target).parent))

    for name, spy in (("open", spy_open), ("fsync", spy_fsync), ("link", spy_link), ("mkdir", spy_mkdir)):
        monkeypatch.setattr(os, name, spy)
    store = Run(Storage(tmp_path / "new" / "checkpoints")).store(1)
    store.commit(100, content(100), {})
    assert at_link == [set()]
    assert not unsynced_files and not unsynced_folders


def test_the_folder_of_the_data_is_synced_before_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    storage = Storage(tmp_path / "checkpoints")
    folder = storage._folder
    for name in ("write", "sync_folder", "create_exclusive"):
        real = getattr(folder, name)

        def logged(target: str, *rest: Any, name: str = name, real: Any = real) -> None:
            log.append(f"{name} {target.rsplit('/')[-1]}")
            real(target, *rest)

        monkeypatch.setattr(folder, name, logged)
    Run(storage).store(1).commit(100, content(100), {})
    named = "step-000000100-f0001"
    top = [entry for entry in log if ".tmp" not in entry]
    assert top[:8] == [
        "write model.safetensors",
        f"sync_folder {tmp_path.name}",
        "sync_folder checkpoints",
        "write training.safetensors",
        "write training.json",
        "write MANIFEST.json",
        f"sync_folder {named}",
        "sync_folder ",
    ]
    assert top[8:] == ["create_exclusive COMMIT.json", f"sync_folder {named}"]
