"""A rank's journal: metrics and events of a run on disk, the source of truth for everything shown elsewhere.

One JSON object per line, in the order it happened, over all attempts:

    {"kind": "metrics", "step": 10, "time": 1730000000.123, "attempt": 3, "values": {"train/loss": 0.5}}
    {"kind": "saved", "time": ..., "attempt": 3, "rank": 0, ...}           any other kind is an event

NaN and infinities are the strings "NaN", "Infinity" and "-Infinity", which float() reads back. Rank 0 writes
metrics and events, the others events only. A crash may leave a torn line: the next attempt closes it, and
readers pass over it.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dist_trainer.adapters.files import plain_number, whole_lines

_FLUSH_EVERY_S = 1.0


class Journal:
    """Appends to one rank's journal, from any thread.

    Metrics are kept back for a second at most while more are written; an event takes them along at once.
    """

    def __init__(self, path: Path, *, attempt: int, rank: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.attempt = attempt
        self.rank = rank
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines = ["\n"] if _is_torn(self._file) else []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        self._write({"kind": "metrics", "step": step, "values": values}, every_s=_FLUSH_EVERY_S)

    def event(self, kind: str, **fields: Any) -> None:
        """Write an event; `fields` are JSON values, anything else is written as its text."""
        assert kind != "metrics", "metrics have a method of their own"
        self._write({"kind": kind, "rank": self.rank, **fields}, every_s=0)

    def sync(self) -> None:
        """Put everything written so far on the disk, so that a checkpoint never is ahead of its metrics."""
        with self._lock:
            self._flush(time.monotonic())
        os.fsync(self._file)  # outside the lock: it may take long, and training goes on writing

    def close(self) -> None:
        """Sync and close."""
        self.sync()
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
        line = _line(record)
        with self._lock:
            self._lines.append(line)
            now = time.monotonic()
            if now - self._flushed >= every_s:
                self._flush(now)

    def _flush(self, now: float) -> None:
        content = memoryview("".join(self._lines).encode())
        self._lines.clear()
        self._flushed = now
        while content:  # a full disk writes less than asked before it raises
            content = content[os.write(self._file, content) :]


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
                yield record, offset


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
            for record in records:
                if record["kind"] == "metrics" and metric in record["values"]:
                    values[record["step"]] = float(record["values"][metric])
    return dict(sorted(values.items()))


def last_saved_step(path: Path) -> int | None:
    """The step of the checkpoint that the next attempt goes on from, by rank 0's journal; None without one."""
    last = _last_event(path, "saved", "started")
    if last is None:
        return None
    if last["kind"] == "saved":
        return int(last["step"])
    return last["first_step"] or None  # what it went on from; one after that may have been bad


def planned_steps(path: Path) -> int | None:
    """How many steps the last attempt that began was to get to, by rank 0's journal."""
    last = _last_event(path, "started")
    return None if last is None else int(last["total_steps"])


def _last_event(path: Path, *kinds: str) -> Mapping[str, Any] | None:
    marks = [f'"kind": "{kind}"'.encode() for kind in kinds]
    found = b""
    if path.exists():
        with path.open("rb") as file:  # only what can matter is parsed: there may be millions of lines
            for line in file:
                if line.endswith(b"\n") and any(mark in line for mark in marks):
                    found = line
    return next(iter(whole_lines(found)), None)


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


def _is_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
