"""How far a run's journals have been carried to MLflow, and which of their points are still to go.

mlflow-sync.json in the run folder, replaced after every batch that was taken:
    mlflow_run, experiment   where to; another MLflow run starts from nothing
    offsets                  journal name -> byte up to which everything is there
    steps                    journal name -> metric -> highest step sent
    config                   digest of the config.yaml whose parameters are there
    artifacts                artifact -> version that is there
    status                   the end that was reported, until another attempt goes on
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.records import read_record
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import iterate_journal
from dist_trainer.tracking.parameters import mlflow_name
from dist_trainer.tracking.system_metrics import JOURNAL as SYSTEM_JOURNAL

BATCH = 1000  # what MLflow takes in one request
JOURNALS = ("rank-0.jsonl", SYSTEM_JOURNAL)


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class SyncState:
    """The content of mlflow-sync.json."""

    mlflow_run: str = ""
    experiment: str = ""
    offsets: dict[str, int] = field(default_factory=dict)
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    config: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    status: str = ""

    @classmethod
    def load(cls, run: RunFolder) -> "SyncState":
        """What was saved last; a fresh one where nothing was, or nothing that can be read: MLflow keeps a point that
        comes twice once."""
        try:
            return read_record(cls, _path(run).read_bytes())
        except (OSError, ValueError):
            return cls()

    def save(self, run: RunFolder) -> None:
        """Replace the file."""
        write_json(_path(run), asdict(self))

    def sent(self, journal: str, points: list[Point], offset: int) -> None:
        """Note that a batch was taken."""
        steps = self.steps.setdefault(journal, {})
        for point in points:
            steps[point.key] = max(point.step, steps.get(point.key, -1))
        self.offsets[journal] = offset


class JournalPoints:
    """The points of one journal that MLflow lacks, each (metric, step) once: the first value stays.

    A resume repeats steps, so a step up to the highest one sent is looked up among those before it. Only then
    is the journal read from its start, at most once an attempt. An offset that the journal does not reach, as
    after a loss of power, says nothing: all of it is sent again, and MLflow keeps each point once.
    """

    def __init__(self, path: Path, state: SyncState) -> None:
        self._path = path
        offset, length = state.offsets.get(path.name, 0), path.stat().st_size if path.is_file() else 0
        self._offset = offset if 0 <= offset <= length else 0
        self._highest = dict(state.steps.get(path.name, {})) if self._offset == offset else {}
        self._repeated: set[tuple[str, int]] = set()  # sent, of the steps in [first, last]
        self._repeat: tuple[int, int, int] | None = None  # attempt, first, last

    def batches(self, size: int = BATCH) -> Iterator[tuple[list[Point], int]]:
        """Up to `size` points each, with the journal's offset to note once they are taken."""
        batch: list[Point] = []
        for record, end in iterate_journal(self._path, self._offset):
            for point in _points(record):
                if self._is_new(point, record["attempt"]):
                    batch.append(point)
                if len(batch) == size:
                    yield batch, self._offset  # the record's start: its other points are still to go
                    batch = []
            self._offset = end
        if batch or self._offset:
            yield batch, self._offset

    def _is_new(self, point: Point, attempt: int) -> bool:
        highest = self._highest.get(point.key, -1)
        if point.step > highest:
            self._highest[point.key] = point.step
            return True
        if point.step == highest:
            return False
        if not self._covers(attempt, point.step):
            self._look_back(attempt, point.step)
        if (point.key, point.step) in self._repeated:
            return False
        self._repeated.add((point.key, point.step))
        return True

    def _covers(self, attempt: int, step: int) -> bool:
        return (
            self._repeat is not None
            and self._repeat[0] == attempt
            and self._repeat[1] <= step <= self._repeat[2]
        )

    def _look_back(self, attempt: int, first: int) -> None:
        self._repeat = (attempt, first, max(self._highest.values()))
        self._repeated = set()
        for record, end in iterate_journal(self._path):
            if end > self._offset:
                return
            self._repeated.update((point.key, point.step) for point in _points(record) if point.step >= first)


def count_left(run: RunFolder, state: SyncState) -> int:
    """How many points are not in MLflow."""
    journals = [JournalPoints(run.journal_path(0).with_name(name), state) for name in JOURNALS]
    return sum(len(points) for journal in journals for points, _ in journal.batches())


def _points(record: dict[str, object]) -> Iterator[Point]:
    if record["kind"] != "metrics":
        return
    values, step, time_s = record["values"], record["step"], record["time"]
    assert isinstance(values, dict) and isinstance(step, int) and isinstance(time_s, float | int)
    for key, value in values.items():
        yield Point(mlflow_name(key), float(value), round(time_s * 1000), step)


def _path(run: RunFolder) -> Path:
    return run.path / "mlflow-sync.json"
