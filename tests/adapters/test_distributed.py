"""The process group: joins, old stores, agreement, and what rank 0 says to all."""

import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from dist_trainer.adapters import distributed
from dist_trainer.adapters.distributed import Group, PeerFailed, join
from dist_trainer.adapters.place import Place, choose_device
from dist_trainer.errors import ConfigError, DistTrainerError, UsageError
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(90)


def use_the_group() -> dict[str, Any]:
    group = join("cpu", timeout_s=20, take_fence=lambda: 7)
    rank = group.rank
    buffers = [torch.full((2, 3), float(rank)).t(), torch.tensor([rank == 0]), torch.tensor(rank + 5)]
    group.broadcast(buffers)
    pending = group.gather_start(torch.tensor([rank, 10 * rank]))
    found = {
        "fence": group.fence,
        "said": group.from_rank_zero(lambda: {"rank": rank, "nothing": None}),
        "error": caught(lambda: group.from_rank_zero(lambda: fail_with("no such folder"))),
        "not JSON": caught(lambda: group.from_rank_zero(lambda: object())),
        "gathered": pending.wait().tolist(),
        "bytes": group.gather_bytes(b"x" * rank),
        "sum": group.sum_over_ranks(torch.tensor([1.0, rank])).tolist(),
        "on device": group.sum_on_device(torch.tensor([rank])).tolist(),
        "buffers": [buffer.tolist() for buffer in buffers],
    }
    group.barrier()
    group.leave()
    return found


def caught(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail_with(message: str) -> None:
    raise UsageError(message)


def test_what_ranks_tell_each_other_arrives() -> None:
    results = run_ranks(3, use_the_group)
    for rank, found in enumerate(results):
        assert found["fence"] == 7
        assert found["said"] == {"rank": 0, "nothing": None}
        assert found["gathered"] == [[0, 0], [1, 10], [2, 20]]
        assert found["bytes"] == [b"", b"x", b"xx"]
        assert found["sum"] == [3.0, 3.0]
        assert found["on device"] == [3]
        assert found["buffers"] == [[[0.0, 0.0]] * 3, [True], 5]
        if rank == 0:
            assert found["error"] == "UsageError: no such folder"
            assert found["not JSON"].startswith("TypeError")
        else:
            assert found["error"] == "PeerFailed: rank 0 failed: UsageError: no such folder"
            assert found["not JSON"].startswith("PeerFailed: rank 0 failed: TypeError")


def join_twice() -> list[tuple[int, float]]:
    """Two groups after each other in one store, as after a restart in place; the first is not left in order."""
    sums = []
    for fence in ("1", "2"):
        os.environ["DIST_TRAINER_FENCE"] = fence
        group = join("cpu", timeout_s=20)
        sums.append((group.fence, float(group.sum_over_ranks(torch.ones(1)))))
        if fence == "1":
            dist.destroy_process_group()
    return sums


def join_twice_without_a_fence() -> list[tuple[int, float]]:
    """The restart count that torchrun gives differs between nodes when one of them failed."""
    rank, sums = int(os.environ["RANK"]), []
    for start in (0, 1):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start if rank == 0 else 0)
        time.sleep(0.3 * rank * start)  # rank 0 meets the questions of the dead first
        group = join("cpu", timeout_s=20, take_fence=lambda: 5)
        sums.append((group.fence, float(group.sum_over_ranks(torch.ones(1)))))
        group.leave()
    return sums


def test_a_second_group_does_not_read_the_first_ones_addresses() -> None:
    assert run_ranks(2, join_twice) == [[(1, 2.0), (2, 2.0)]] * 2
    assert run_ranks(3, join_twice_without_a_fence) == [[(5, 3.0), (5, 3.0)]] * 3


def join_where_rank_zero_fails() -> str:
    return caught(lambda: join("cpu", timeout_s=20, take_fence=lambda: fail_with("the run is locked")))  # type: ignore[arg-type, return-value]


def test_an_error_of_rank_zero_before_the_group_exists_reaches_all_ranks() -> None:
    errors = run_ranks(3, join_where_rank_zero_fails, timeout_s=20)
    assert errors[0] == "UsageError: the run is locked"
    assert errors[1:] == ["PeerFailed: rank 0 failed: UsageError: the run is locked"] * 2


def test_a_rank_that_never_comes_is_named() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = Place(0, 2, 0, 2, launched=True, fence=None)
    with pytest.raises(DistTrainerError, match=r"ranks \[1\] did not join within 0.1 s"):
        distributed._agree_on_start(place, store, lambda: 1, timedelta(seconds=0.1))


def test_the_question_of_a_dead_rank_does_not_stand_for_the_living() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("question-1", "of-the-dead")
    zero, one = (Place(rank, 2, rank, 2, launched=True, fence=None) for rank in (0, 1))
    found: list[tuple[int, str]] = []

    def come_late() -> None:
        time.sleep(0.2)
        own = TCPStore("127.0.0.1", store.port, is_master=False)
        found.append(distributed._agree_on_start(one, own, lambda: 0, timedelta(seconds=5)))

    thread = threading.Thread(target=come_late)
    thread.start()
    found.append(distributed._agree_on_start(zero, store, lambda: 3, timedelta(seconds=5)))
    thread.join()
    assert found[0] == found[1]
    assert found[0][0] == 3


def test_a_process_that_nobody_launched_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "DIST_TRAINER_FENCE"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        group = join("auto" if not torch.cuda.is_available() else "cpu", timeout_s=5, take_fence=lambda: 4)
        assert (group.rank, group.world_size, group.fence, group.is_rank_zero) == (0, 1, 4, True)
        assert group.from_rank_zero(lambda: 3) == 3
        group.leave()


def test_a_missing_device_is_an_error_and_never_another_device() -> None:
    place = Place(0, 99, 0, 99, launched=True, fence=1)
    with pytest.raises(ConfigError, match=r"launch.workers_per_node is 99 .*CUDA sees \d+ devices"):
        choose_device("cuda", place)
    assert choose_device("cpu", place).type == "cpu"


def test_errors_of_a_peer_are_marked_as_such() -> None:
    assert issubclass(PeerFailed, DistTrainerError)
    assert isinstance(Group.is_rank_zero, property)


def wait_while_rank_zero_works() -> float:
    group = join("cpu", timeout_s=0.75)  # the group's own time-out is twice that
    begun, beats = time.monotonic(), []
    group.wait_for_rank_zero(lambda: time.monotonic() < begun + 3, meanwhile=lambda: beats.append(0))
    waited = time.monotonic() - begun
    assert len(beats) >= 3
    group.leave()
    return waited


def test_ranks_wait_for_rank_zero_longer_than_the_groups_time_out() -> None:
    assert min(run_ranks(3, wait_while_rank_zero_works)) >= 2.5
