"""The journal: whole lines on disk, whatever dies, at a cost no step notices."""

import json
import math
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.tracking.journal import Journal, history, read_journal, saved_checkpoints


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "rank-0.jsonl"


def test_metrics_and_events_come_back_in_order(path: Path) -> None:
    with Journal(path, attempt=3, rank=0) as journal:
        journal.metrics(10, {"train/loss": 0.5, "epoch": 1})
        journal.event("saved", step=10, name="step-10")
    (metrics, saved), end = read_journal(path)
    assert metrics.pop("time") == pytest.approx(time.time(), abs=10)
    assert metrics == {"kind": "metrics", "step": 10, "attempt": 3, "values": {"train/loss": 0.5, "epoch": 1}}
    assert (saved["kind"], saved["step"], saved["name"], saved["rank"]) == ("saved", 10, "step-10", 0)
    assert end == path.stat().st_size


def test_every_line_is_json_although_metrics_are_not_finite(path: Path) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})
        journal.event("odd", where=Path("/x"), values=[math.nan, (1, None)])
    lines = path.read_text().splitlines()
    metrics, odd = (json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines)
    assert metrics["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.5}
    assert (odd["where"], odd["values"]) == ("/x", ["NaN", [1, None]])
    values = history(path)
    assert math.isnan(values["a"][1])
    assert (values["b"][1], values["c"][1]) == (math.inf, -math.inf)


def test_numbers_of_other_types_are_written_as_numbers(path: Path) -> None:
    import numpy

    with Journal(path, attempt=1, rank=0) as journal:
        journal.metrics(1, {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.float64("nan")})
    assert read_journal(path)[0][0]["values"] == {"a": 0.5, "b": 3.0, "c": "NaN"}


def test_reading_goes_on_where_it_ended_and_leaves_a_line_still_being_written(path: Path) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.metrics(1, {"a": 1})
        journal.sync()
        _, offset = read_journal(path)
        journal.metrics(2, {"a": 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert read_journal(path, offset) == ([], offset)
    path.write_bytes(whole)
    (record,), end = read_journal(path, offset)
    assert (record["step"], end) == (2, len(whole))


def test_a_torn_line_costs_only_itself(path: Path) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.metrics(1, {"a": 1})
        journal.metrics(2, {"a": 2})
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(path, attempt=2, rank=0) as journal:
        journal.metrics(2, {"a": 3})
    assert history(path) == {"a": {1: 1.0, 2: 3.0}}


def test_of_a_repeated_step_the_history_keeps_the_last_attempt(path: Path) -> None:
    for attempt in (1, 2):
        with Journal(path, attempt=attempt, rank=0) as journal:
            journal.metrics(5, {"a": attempt})
    assert history(path) == {"a": {5: 2.0}}


def test_no_journal_yet_reads_as_empty(path: Path) -> None:
    assert read_journal(path) == ([], 0)
    assert history(path) == {}


def test_what_was_synced_survives_a_kill(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dist_trainer.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), attempt=1, rank=0)\n"
        "for step in range(500): journal.metrics(step, {'a': step})\n"
        "journal.sync(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(history(path)["a"]) == 500


def test_an_event_is_seen_at_once_and_a_metric_within_a_second_of_writing(path: Path) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.metrics(1, {"a": 1})
        journal.event("saved")
        assert len(read_journal(path)[0]) == 2
        journal.metrics(2, {"a": 1})
        time.sleep(1.05)
        journal.metrics(3, {"a": 1})
        assert len(read_journal(path)[0]) == 4


def test_threads_write_whole_lines(path: Path) -> None:
    def write(thread: int) -> None:
        for step in range(200):
            journal.event("x", thread=thread, step=step)

    with Journal(path, attempt=1, rank=0) as journal:
        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({(line["thread"], line["step"]) for line in read_journal(path)[0]}) == 800


def test_a_hundred_metrics_at_every_step_cost_under_three_percent_of_ten_milliseconds(path: Path) -> None:
    values = {f"train/metric_{number}": number / 7 for number in range(100)}
    with Journal(path, attempt=1, rank=0) as journal:
        costs = []
        for _ in range(20):
            began = time.process_time()
            for step in range(50):
                journal.metrics(step, values)
            costs.append((time.process_time() - began) / 50)
    assert sorted(costs)[len(costs) // 2] < 0.03 * 0.010


@pytest.fixture
def limit_files_to() -> Iterator[Callable[[int], None]]:
    """Have the kernel refuse what would make any file longer: it takes a part and then nothing, as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refuses_is_kept_and_written_once_there_is_room(
    path: Path, limit_files_to: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.event("saved", step=1)
        with capsys.disabled():  # the test's own output is a file too
            limit_files_to(path.stat().st_size + 10)
            for step in range(2, 6):
                journal.metrics(step, {"a": step})
                journal.event("saved", step=step)
                journal.sync()
            assert [record["step"] for record in read_journal(path)[0]] == [1]
            assert not path.read_bytes().endswith(b"\n"), "a part of a line got through"
            limit_files_to(resource.RLIM_INFINITY)
        journal.event("saved", step=6)
    records = read_journal(path)[0]
    assert [record["step"] for record in records if record["kind"] == "saved"] == [1, 2, 3, 4, 5, 6]
    assert history(path) == {"a": {2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}}
    (alarm,) = (record["message"] for record in records if record["kind"] == "alarm")
    assert f"{path} could not be written for" in alarm and "nothing of it is lost" in alarm


def test_a_disk_that_stays_full_costs_what_memory_does_not_hold_and_says_so(
    path: Path,
    limit_files_to: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dist_trainer.tracking.journal._KEPT_BYTES", 500)
    with capfd.disabled():
        journal = Journal(path, attempt=1, rank=0)
        limit_files_to(0)
        for step in range(100):
            journal.event("saved", step=step)
        limit_files_to(resource.RLIM_INFINITY)
    journal.close()
    records = read_journal(path)[0]
    kept = sum(record["kind"] == "saved" for record in records)
    assert 3 <= kept < 20 and f"{100 - kept} lines are lost" in records[-1]["message"]


def test_a_saved_line_that_names_no_checkpoint_hides_no_other(path: Path) -> None:
    with Journal(path, attempt=1, rank=0) as journal:
        journal.event("saved", step=1, checkpoint="step-1")
        journal.event("saved", step=2)
        journal.event("saved", step=3, checkpoint=["step-3"])
        journal.event("saved", step=4, checkpoint="step-4")
    with path.open("a") as file:
        file.write('["saved", {"kind": "saved"}]\n{"kind": "saved", "checkpoint": "step-5"}\n')
    assert saved_checkpoints(path) == ["step-1", "step-4"]


def test_nothing_is_left_open(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Journal(path, attempt=1, rank=0):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text for this")


def test_an_event_that_cannot_be_written_is_its_callers_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "rank-0.jsonl", attempt=1, rank=0) as journal:
        journal.metrics(1, {"loss": 1.0})
        with pytest.raises(RuntimeError, match="no text for this"):
            journal.event("odd", value=Unprintable())
        journal.event("even")
        journal.sync()
    records, _ = read_journal(tmp_path / "rank-0.jsonl")
    assert [record["kind"] for record in records] == ["metrics", "even"]
