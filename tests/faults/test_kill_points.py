"""SIGKILL at every point of a save and of the retention after it: what was acknowledged is found, and whole."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.state import encode
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.errors import DistTrainerError
from tests.faults.ledger import is_whole, record, times
from tests.faults.victims import KEEP_ONE, Victims, is_state, state, store_of
from tests.object_store import bucket, faulty_proxy, open_storage, s3_endpoint  # noqa: F401

pytestmark = pytest.mark.timeout(3600 if is_whole() else 120)
SEED = int(os.environ.get("KILL_SEED", "4"))
Point = tuple[int, int]  # a call, and how many bytes of it when it is a write


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    warm = Victims()
    yield warm
    warm.close()


def commit(store: CheckpointStore, step: int) -> None:
    store.commit(step, encode(state(step).model, state(step).training), {})


def what_is_wrong(storage: Storage, told: list[int], before: int | None = 100) -> str:
    """What the next attempt would have to complain of, after a save that was killed; nothing if all is well."""
    try:
        return _what_is_wrong(storage, told, before)
    except DistTrainerError as error:
        return str(error)


def _what_is_wrong(storage: Storage, told: list[int], before: int | None) -> str:
    reports: list[str] = []
    store = store_of(storage, 2, reports)
    found, oldest = store.newest_good(), max(told, default=before)
    if found is None:
        return "nothing is found" if oldest is not None else _next_save_fails(storage, store)
    if oldest is not None and found[0].step < oldest:
        return f"step {found[0].step} is found, and {oldest} was acknowledged"
    if reports or not is_state(found[1], found[0].step):
        return f"step {found[0].step} is half there: {reports}"
    return _next_save_fails(storage, store)


def _next_save_fails(storage: Storage, store: CheckpointStore) -> str:
    commit(store, 400)
    store.retain(KEEP_ONE)
    there, found = storage.list(), store.newest_good()
    if found is None or not is_state(found[1], 400) or there != ["step-000000400-f0002"]:
        return f"the next save did not work: {there}"
    return ""


def points_of(calls: list[tuple[str, int]]) -> list[Point]:
    """Before each call, and after each number of bytes of the writes; of the second save the calls alone, since
    it is the first one's but for what is deleted."""
    half = len(calls) // 2
    whole = [(number, size) for number, (_, length) in enumerate(calls[:half]) for size in range(length + 1)]
    return whole + [(number, 0) for number in range(half, len(calls))]


@pytest.mark.parametrize("before", [100, None], ids=["after a save before", "in a run's first save"])
def test_killed_at_any_byte_or_call_of_a_save_nothing_is_lost(
    before: int | None, tmp_path: Path, victims: Victims, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, folder = tmp_path / "template", tmp_path / "checkpoints"
    template.mkdir()
    if before is not None:
        commit(store_of(Storage(template), 1), before)
    shutil.copytree(template, folder)
    points = points_of(victims.save(str(folder))["calls"])
    calls = [point for point in points if point[1] == 0]
    offsets = [point for point in points if point[1] > 0]
    chance = random.Random(SEED)
    # in a first save there is nothing to lose but what it acknowledged itself
    calls = chance.sample(calls, times(24 if before else 6, len(calls)))
    offsets = chance.sample(offsets, times(30 if before else 6, len(offsets) if before else 500))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody pulls the plug while we look
    lost, began = {}, time.monotonic()
    for call, size in calls + offsets:
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
        end = victims.save(str(folder), call=call, size=size)
        assert not end["ended"]
        if wrong := what_is_wrong(Storage(folder), end["committed"], before):
            lost[call, size] = wrong
    which = "SIGKILL at every byte and call of a save, local" + ("" if before else ": a run's first")
    note = (
        f"{len(offsets)} byte offsets, {len(calls)} calls, {time.monotonic() - began:.0f} s; KILL_SEED={SEED}"
    )
    record(which, tried=len(calls) + len(offsets), lost=len(lost), note=note)
    assert not lost


def test_killed_at_any_request_of_a_save_to_s3_nothing_is_lost(
    s3_endpoint: str,  # noqa: F811
    bucket: str,  # noqa: F811
    open_storage: Callable[..., Storage],  # noqa: F811
    victims: Victims,
) -> None:
    lost, tried, began = {}, 0, time.monotonic()
    with faulty_proxy(s3_endpoint) as proxy:
        options = {"endpoint_url": proxy.url}
        seen: list[bool] = []
        proxy.watch = seen.append
        storage = open_storage(f"{bucket}/untouched")
        commit(store_of(storage, 1), 100)
        assert victims.save(f"{bucket}/untouched", options=options)["ended"]
        points = range(len(seen))  # each request twice: before the store has it, and before its reply
        assert len(points) > 40
        if not is_whole():
            points = sorted(random.Random(SEED).sample(points, 8))
        for point in points:
            url = f"{bucket}/killed-{point}"
            storage = open_storage(url)
            commit(store_of(storage, 1), 100)
            pids: Queue[int] = Queue()
            proxy.watch = killer(point, pids)
            end = victims.save(url, options=options, started=pids.put)
            if end["ended"]:
                continue
            tried += 1
            if wrong := what_is_wrong(storage, end["committed"]):
                lost[point] = wrong
        proxy.watch = lambda reached: None
    note = f"{time.monotonic() - began:.0f} s; KILL_SEED={SEED}"
    record("SIGKILL at every request of a save, S3", tried=tried, lost=len(lost), note=note)
    assert not lost and tried >= len(points) - 1


def killer(point: int, pids: "Queue[int]") -> Callable[[bool], None]:
    """Kills the process whose pid comes through the queue when that many requests and replies were seen."""
    seen = 0

    def watch(reached: bool) -> None:
        nonlocal seen
        seen += 1
        if seen == point + 1:
            os.kill(pids.get(), signal.SIGKILL)

    return watch


def test_the_victim_would_be_caught_at_losing_what_it_acknowledged(
    tmp_path: Path, victims: Victims, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store_of(Storage(tmp_path), 1), 100)
    end = victims.save(str(tmp_path))
    assert end["committed"] == [200, 300]
    shutil.rmtree(tmp_path / "step-000000300-f0001")
    assert what_is_wrong(Storage(tmp_path), end["committed"]) == "nothing is found"
    commit(store_of(Storage(tmp_path), 1), 200)
    assert "300 was acknowledged" in what_is_wrong(Storage(tmp_path), end["committed"])
