"""One holder of a file at a time, also where one takes over from a holder whose time is over."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.adapters import file_lock
from dist_trainer.adapters.file_lock import Owner, hold

pytestmark = pytest.mark.timeout(60)

HOLD = """
import sys
from pathlib import Path
from dist_trainer.adapters.file_lock import hold

path, job, over = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
try:
    with hold(path, held=lambda owner: BlockingIOError(owner and owner.job), job=job,
              is_over=lambda owner: owner.job in over, patience_s=0.2):
        print("held", flush=True)
        sys.stdin.readline()
except BlockingIOError as error:
    print("refused by", error, flush=True)
"""


class Holder:
    """A process that holds the lock until it is told to release it, or is killed."""

    def __init__(self, path: Path, job: str, *over: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, path, job, *over],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        with self.process:  # closes its pipes too
            self.process.wait(10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    """Begin to hold the lock as a job; the jobs after it are over."""
    started: list[Holder] = []

    def begin(job: str, *over: str) -> Holder:
        started.append(Holder(tmp_path / "lock", job, *over))
        return started[-1]

    yield begin
    for holder in started:
        holder.kill()


def owner(folder: Path) -> str | None:
    text = (folder / "lock").read_text()
    return str(json.loads(text)["job"]) if text else None


@pytest.mark.parametrize("ends", [Holder.kill, Holder.release])
def test_who_took_over_keeps_the_lock_when_the_one_before_ends(
    ends: Callable[[Holder], None], start: Callable[..., Holder], tmp_path: Path
) -> None:
    first = start("1")
    assert first.said() == "held"
    second = start("2", "1")
    assert second.said() == "held"
    ends(first)
    assert owner(tmp_path) == "2"
    assert start("3", "1").said() == "refused by 2"
    second.release()
    assert owner(tmp_path) is None
    assert start("4").said() == "held"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_of_many_that_take_over_at_once_one_does(start: Callable[..., Holder]) -> None:
    assert start("1").said() == "held"
    others = [start(str(job), "1") for job in range(2, 8)]
    said = [holder.said() for holder in others]
    assert said.count("held") == 1
    winner = said.index("held") + 2
    assert said.count(f"refused by {winner}") == 5


def test_who_got_the_flock_but_not_yet_the_name_gives_way_to_who_takes_over(tmp_path: Path) -> None:
    path, began, go_on = tmp_path / "lock", threading.Event(), threading.Event()
    path.write_text(json.dumps({"pid": 7, "host": "lost-node", "since": 0.0, "job": "1"}))
    ended: list[str] = []

    def watch() -> bool:
        began.set()
        return not go_on.wait(20)

    def plain() -> None:
        refused = lambda owner: BlockingIOError(f"refused by {owner and owner.job}")  # noqa: E731
        try:
            with hold(path, held=refused, job="2", still_alive=watch, patience_s=0.1):
                ended.append("held")
        except BlockingIOError as error:
            ended.append(str(error))

    thread = threading.Thread(target=plain)
    thread.start()
    assert began.wait(10)
    with hold(
        path,
        held=lambda owner: BlockingIOError(owner),
        job="3",
        is_over=lambda owner: owner.job == "1",
        patience_s=0.1,
    ):
        go_on.set()
        thread.join()
        assert ended == ["refused by 3"]
        assert owner(tmp_path) == "3"


def test_a_change_that_never_ends_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "_CHANGES_WITHIN_S", 0.2)
    path = tmp_path / "lock"

    def held(owner: Owner | None) -> Exception:
        return BlockingIOError(owner)

    with (
        file_lock._alone(path, held),
        pytest.raises(BlockingIOError),
        hold(path, held=held, patience_s=0.1),
    ):
        pass
    with hold(path, held=held):
        assert json.loads(path.read_text())["pid"] == os.getpid()
