"""A rank's journal: metrics and events of a run on disk, the source of truth for everything shown elsewhere.

One JSON object per line, in the order it happened, over all attempts:

    {"kind": "metrics", "step": 10, "time": 1730000000.123, "attempt": 3, "values": {"train/loss": 0.5}}
    {"kind": "saved", "time": ..., "attempt": 3, "rank": 0, ...}           any other kind is an event

NaN and infinities are the strings "NaN", "Infinity" and "-Infinity", which float() reads back. Rank 0 writes
metrics and events, the others events only. A crash may leave a torn line: the next attempt closes it, and
readers pass over it. What a full or broken disk refuses is kept in memory, and written once it takes it.
"""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dist_trainer.adapters.files import is_torn, make_private_folder, open_private, plain_number, whole_lines
from dist_trainer.adapters.local_folder import sync_folder
from dist_trainer.adapters.records import is_count, is_moment

_FLUSH_EVERY_S = 1.0
_KEPT_BYTES = 64 << 20  # of what the disk refuses: hours of points
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_LARGEST = 1 << 1000  # a float takes no larger one


class Journal:
    """Appends to one rank's journal, from any thread.

    Metrics are kept back for a second at most while more are written; an event takes them along at once. No
    method raises what the disk has to say: training goes on, and an alarm tells of it afterwards.
    """

    def __init__(self, path: Path, *, attempt: int, rank: int) -> None:
        make_private_folder(path.parent)
        self.attempt = attempt
        self.rank = rank
        self._path = path
        self._file = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        # metrics are no line yet: many at once cost a third of one by one
        self._pending: list[dict[str, Any] | str] = []
        self._closes_torn_line = is_torn(self._file)
        self._refused = bytearray()  # what the disk did not take; it may begin in the middle of a line
        self._refused_since: float | None = None
        self._dropped = 0  # lines
        self._flushed = time.monotonic()
        with suppress(OSError):
            sync_folder(path.parent)  # or a power cut loses the whole file
        self._lock = threading.Lock()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        kept = {key: value if type(value) is float else _plain(value) for key, value in values.items()}
        self._write({"kind": "metrics", "step": step, "values": kept}, every_s=_FLUSH_EVERY_S)

    def event(self, kind: str, **fields: Any) -> None:
        """Write an event; `fields` are JSON values, anything else is written as its text."""
        assert kind != "metrics", "metrics have a method of their own"
        self._write({"kind": kind, "rank": self.rank, **fields}, every_s=0)

    def sync(self) -> None:
        """Put everything written so far on the disk, so that a checkpoint never is ahead of its metrics."""
        with self._lock:
            self._flush(time.monotonic())
        with suppress(OSError):  # what it means is said by the write that fails
            os.fsync(self._file)  # outside the lock: it may take long, and training goes on writing

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        if self._refused:
            _tell(f"{self._path}: its last {len(self._refused)} bytes are lost: the disk did not take them")
        os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: dict[str, Any], *, every_s: float) -> None:
        # whole milliseconds: MLflow knows no finer, and a point sent twice must look the same
        record["time"] = round(time.time(), 3)
        record["attempt"] = self.attempt
        line = record if record["kind"] == "metrics" else _line(record)
        with self._lock:
            self._pending.append(line)
            now = time.monotonic()
            if now - self._flushed >= every_s:
                self._flush(now)

    def _flush(self, now: float) -> None:
        if len(self._refused) < _KEPT_BYTES:
            lines = (each if isinstance(each, str) else _line(each) for each in self._pending)
            torn = "\n" if self._closes_torn_line else ""
            self._refused += (torn + "".join(lines)).encode()
            self._closes_torn_line = False
        else:
            self._dropped += len(self._pending)
        self._pending.clear()
        self._flushed = now
        try:
            self._write_refused()
        except OSError as error:
            if self._refused_since is None:
                self._refused_since = now
                _tell(
                    f"{self._path}: cannot be written: {error.strerror}; training goes on, and keeps it in memory"
                )
            return
        if self._refused_since is not None:
            self._tell_of_recovery(now - self._refused_since)

    def _write_refused(self) -> None:
        while self._refused:  # a full disk writes less than asked before it raises
            del self._refused[: os.write(self._file, self._refused)]

    def _tell_of_recovery(self, seconds: float) -> None:
        lost = f"{self._dropped} lines are lost" if self._dropped else "nothing of it is lost"
        self._refused_since, self._dropped = None, 0
        message = f"{self._path} could not be written for {seconds:.0f} s, as on a full disk; {lost}"
        alarm = {"kind": "alarm", "rank": self.rank, "message": message, "time": round(time.time(), 3)}
        self._refused += _line({**alarm, "attempt": self.attempt}).encode()
        with suppress(OSError):  # then it is written with the next line
            self._write_refused()


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The records after byte `offset`, and the offset to go on from: a line still being written is left."""
    pairs = list(iterate_journal(path, offset))
    return [record for record, _ in pairs], pairs[-1][1] if pairs else offset


def iterate_journal(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Each record after byte `offset` with the offset behind it; nothing where there is no file yet."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            for record in whole_lines(line):
                if is_record(record):
                    yield record, offset


def is_record(record: Mapping[str, Any]) -> bool:
    """Whether a line of JSON is one that a journal wrote: anything else is passed over, as a torn one is."""
    if not isinstance(record.get("kind"), str) or not is_count(record.get("attempt")):
        return False
    if record["kind"] != "metrics":
        return is_moment(record.get("time"))
    is_point = is_count(record.get("step")) and is_moment(record.get("time"))
    values = record.get("values")
    return is_point and isinstance(values, dict) and all(map(_is_value, values.values()))


def _is_value(value: Any) -> bool:
    return type(value) is float or value in _NOT_FINITE or (type(value) is int and abs(value) < _LARGEST)


def history(path: Path) -> dict[str, dict[int, float]]:
    """Every metric's value by step. Where a resume repeated a step, the last attempt's value."""
    values: dict[str, dict[int, float]] = {}
    for record, _ in iterate_journal(path):
        if record["kind"] == "metrics":
            for key, value in record["values"].items():
                values.setdefault(key, {})[record["step"]] = float(value)
    return values


def metric_history(path: Path, metric: str) -> dict[int, float]:
    """One metric's values by step, oldest first; only the lines that have it are parsed."""
    values: dict[int, float] = {}
    mark = json.dumps(metric).encode()
    if path.exists():
        with path.open("rb") as file:
            records = (record for line in file if mark in line for record in whole_lines(line))
            for record in filter(is_record, records):
                if record["kind"] == "metrics" and metric in record["values"]:
                    values[record["step"]] = float(record["values"][metric])
    return dict(sorted(values.items()))


def last_saved_step(path: Path) -> int | None:
    """The step of the checkpoint that the next attempt goes on from, by rank 0's journal; None without one."""
    last = _last_event(path, "saved", "started")
    if last is None:
        return None
    if last["kind"] == "saved":
        return _whole_number(last.get("step"))
    return (
        _whole_number(last.get("first_step")) or None
    )  # went on from there; one after that may have been bad


def saved_checkpoints(path: Path, *, newest: int = 100) -> list[str]:
    """The names of the checkpoints that were saved last, by rank 0's journal; some may be deleted by now."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = deque((line for line in file if b'"kind": "saved"' in line), newest)
    records = filter(is_record, (record for line in lines for record in whole_lines(line)))
    return [name for record in records if isinstance(name := record.get("checkpoint"), str)]


def planned_steps(path: Path) -> int | None:
    """How many steps the last attempt that began was to get to, by rank 0's journal."""
    last = _last_event(path, "started")
    return None if last is None else _whole_number(last.get("total_steps"))


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int else None


def _last_event(path: Path, *kinds: str) -> Mapping[str, Any] | None:
    marks = [f'"kind": "{kind}"'.encode() for kind in kinds]
    found = b""
    if path.exists():
        with path.open("rb") as file:  # only what can matter is parsed: there may be millions of lines
            for line in file:
                if line.endswith(b"\n") and any(mark in line for mark in marks):
                    found = line
    return next(filter(is_record, whole_lines(found)), None)


def _line(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except (ValueError, TypeError):  # rare, so only then each value is looked at
        return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | bool | int | None):
        return value
    if hasattr(value, "__float__"):
        return plain_number(float(value))
    return str(value)


def _tell(message: str) -> None:
    with suppress(OSError, ValueError):  # the log may be on the same disk
        print(f"warning: {message}", file=sys.stderr, flush=True)
