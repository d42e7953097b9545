"""What a run's folder holds of how it went: each piece is read by itself, so that a torn one hides no other.

Nothing is written, and nothing is waited for. What cannot be read is a sentence in `problems`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dist_trainer.adapters.file_lock import Owner
from dist_trainer.adapters.files import whole_lines
from dist_trainer.adapters.records import is_moment
from dist_trainer.config.schema import NAME_PATTERN
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.jobs.standing import owner_of
from dist_trainer.run_folder import RunFolder, RunInfo, Status, WorkerError
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat
from dist_trainer.tracking.journal import planned_steps

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, DistTrainerError)
_PIECES = ("config.yaml", "attempts.jsonl", "status.json", "fence", "journal")
T = TypeVar("T")
U = TypeVar("U")
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """All that one attempt of a run left; `attempt` is 0 where none was begun."""

    run: RunFolder
    attempt: int
    newest: int
    info: RunInfo | None
    config: Mapping[str, Any]
    status: Status | None  # None where it cannot be read
    lines: Sequence[Line]  # of attempts.jsonl
    words: Sequence[WorkerError]  # of failed ranks, the earliest first
    beats: Mapping[int, Beat]  # by rank; of the newest attempt alone
    total_steps: int | None
    owner: Owner | None  # who holds the run now
    problems: list[str] = field(default_factory=list)

    @property
    def is_newest(self) -> bool:
        """Whether the attempt is the last that was begun."""
        return self.attempt == self.newest

    @cached_property
    def start(self) -> Line | None:
        """The attempt's first line; None where it never came to train."""
        return self.line_of(self.attempt, "start")

    @cached_property
    def began(self) -> float | None:
        """When it was begun, by its fence; None where that cannot be told."""
        with suppress(*UNREADABLE):
            fence = json.loads((self.run.path / "fence" / f"{self.attempt:04d}.json").read_bytes())
            return float(fence["time"]) if is_moment(fence["time"]) else None
        return None

    @property
    def last_start(self) -> Line | None:
        """Its first line, or that of the last attempt that came to train."""
        return self.start or next((line for line in self.lines[::-1] if line["event"] == "start"), None)

    @cached_property
    def end(self) -> Line | None:
        """Its last one; None where it died without a word, or trains."""
        return self.line_of(self.attempt, "end")

    def setting(self, key: str) -> Any:
        """What config.yaml says of `section.key`; None where it says nothing."""
        section, _, name = key.partition(".")
        found = self.config.get(section)
        return found.get(name) if isinstance(found, dict) else None

    def line_of(self, attempt: int, event: str) -> Line | None:
        """The last line of the kind."""
        found = [line for line in self.lines if (line["attempt"], line["event"]) == (attempt, event)]
        return found[-1] if found else None

    @property
    def exit_codes(self) -> dict[int, int]:
        """Those of the ranks that failed, from before the others were ended."""
        codes = (self.end or {}).get("exit_codes") or {}
        with suppress(*UNREADABLE):
            return {int(rank): int(code) for rank, code in codes.items()}
        return {}

    @property
    def ranks(self) -> list[int]:
        """Every rank that is known to have been there."""
        size = whole((self.start or {}).get("world_size")) or 0
        words = {word.rank for word in self.words}
        return sorted({*range(min(size, 100_000)), *self.beats, *words, *self.exit_codes})

    @property
    def nodes(self) -> list[str]:
        """Where it ran."""
        names = (self.start or {}).get("nodes")
        return [str(name) for name in names] if isinstance(names, list) else []


def whole(value: Any) -> int | None:
    """A whole number, or None: what a file holds may be anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def remains_of(name_or_path: str, runs: Path) -> RunFolder | None:
    """What is left of a run that lost its run.json; None where nothing of a run is there."""
    places = [runs / name_or_path] if re.fullmatch(NAME_PATTERN, name_or_path) else []
    with suppress(OSError, ValueError):  # no file can have such a name
        for path in (*places, Path(name_or_path)):
            if not (path / "sweep.json").exists() and any((path / piece).exists() for piece in _PIECES):
                return RunFolder(path.absolute())
    return None


def gather(run: RunFolder, attempt: int | None) -> Evidence:
    """Read it all. UsageError where there is no such attempt."""
    reader = _Reader(run)
    lines = reader.take("attempts.jsonl", reader.lines, list[Line]())
    begun = {line["attempt"] for line in lines if line["attempt"] > 0}
    newest = max(reader.take("fence", run.highest_fence, 0), *begun, 0)
    if attempt is not None and not 1 <= attempt <= newest:
        there = f"its attempts are 1 to {newest}" if newest else "none was begun yet"
        raise UsageError(f"run {run.path.name} has no attempt {attempt}; {there}")
    number = newest if attempt is None else attempt
    beats = reader.take("heartbeat", reader.beats, dict[int, Beat]())
    return Evidence(
        run=run,
        attempt=number,
        newest=newest,
        info=reader.take("run.json", run.info, None),
        config=reader.take("config.yaml", reader.config, dict[str, Any]()),
        status=reader.take("status.json", reader.status, None),
        lines=lines,
        words=reader.words(number),
        beats={rank: beat for rank, beat in beats.items() if beat.attempt == number},
        total_steps=reader.take("journal/rank-0.jsonl", lambda: planned_steps(run.journal_path(0)), None),
        owner=reader.take("run.lock", lambda: owner_of(run), None),
        problems=reader.problems,
    )


class _Reader:
    """Reads one piece after another and keeps what stood in the way."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.problems: list[str] = []

    def take(self, name: str, read: Callable[[], T], otherwise: U) -> T | U:
        """What `read` gives, or `otherwise` and a problem."""
        try:
            return read()
        except FileNotFoundError:
            self.problems.append(f"{name} is missing")
        except UNREADABLE as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
            self.problems.append(f"{name} cannot be read: {said[:100]}")
        return otherwise

    def lines(self) -> list[Line]:
        """Those that say of which attempt they are, and what happened."""
        path = self._run.attempts_path
        content = path.read_bytes() if path.exists() else b""
        found: list[Line] = [line for line in whole_lines(content) if _is_of_an_attempt(line)]
        torn = sum(bool(line.strip()) for line in content.split(b"\n")) - len(found)
        if torn:
            self.problems.append(f"attempts.jsonl: {torn} {'line' if torn == 1 else 'lines'} cannot be read")
        return found

    def config(self) -> Mapping[str, Any]:
        """config.yaml as it is written, unchecked: a run begun from Python has settings alone."""
        tree, found = read_yaml(self._run.config_path.read_text(), "config.yaml")
        plain = tree.plain() if tree is not None else None
        if found or not isinstance(plain, dict):
            raise ValueError(found[0].message if found else "not a section of keys")
        return plain

    def status(self) -> Status:
        """status.json, with a step that is a number."""
        status = self._run.read_status()
        if not isinstance(status.state, str) or not isinstance(status.reason, str):
            raise ValueError("state and reason must be words")
        return status

    def beats(self) -> dict[int, Beat]:
        """The last one of each rank."""
        found = (read_heartbeat(path) for path in sorted((self._run.path / "heartbeat").glob("rank-*")))
        return {
            beat.rank: beat
            for beat in found
            if beat is not None and None not in map(whole, (beat.rank, beat.attempt, beat.step))
        }

    def words(self, attempt: int) -> list[WorkerError]:
        """What failed ranks said."""
        words = self.take("logs", lambda: self._run.read_errors(attempt), list[WorkerError]())
        there = len(list(self._run.log_path(attempt, 0).parent.glob("error-rank-*.json")))
        if there > len(words):
            self.problems.append(f"{there - len(words)} of the ranks' error files cannot be read")
        return words


def _is_of_an_attempt(line: Any) -> bool:
    if not isinstance(line, dict) or whole(line.get("attempt")) is None:
        return False
    return isinstance(line.get("event"), str)
