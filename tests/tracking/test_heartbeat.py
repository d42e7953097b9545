"""The heartbeat: always whole, and cheap enough for every step."""

import os
import threading
import time
from pathlib import Path

import pytest

from dist_trainer.tracking.heartbeat import Beat, Heartbeat, read_heartbeat


def test_the_last_beat_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat" / "rank-1"
    assert read_heartbeat(path) is None
    heart = Heartbeat(path, rank=1, attempt=2)
    assert read_heartbeat(path) is None
    heart.beat(123_456, "evaluate")
    heart.beat(7, "train")
    heart.close()
    beat = read_heartbeat(path)
    assert beat is not None
    assert beat == Beat(os.getpid(), 1, 2, 7, "train", beat.time)
    assert beat.time == pytest.approx(time.time(), abs=10)


def test_a_reader_never_sees_half_a_beat(tmp_path: Path) -> None:
    path = tmp_path / "rank-0"
    heart = Heartbeat(path, rank=0, attempt=1)
    heart.beat(0, "train")
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            heart.beat(10 ** (step % 12), "train" if step % 2 else "evaluation")
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    beats = [read_heartbeat(path) for _ in range(500)]
    stop.set()
    writer.join()
    heart.close()
    assert None not in beats


def test_a_beat_costs_less_than_ten_microseconds(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path / "rank-0", rank=0, attempt=1)
    costs = []
    for _ in range(20):
        began = time.process_time()
        for step in range(200):
            heart.beat(step, "train")
        costs.append((time.process_time() - began) / 200)
    heart.close()
    assert sorted(costs)[len(costs) // 2] < 10e-6
