"""A run's folder: what it is called, and who reads and writes which file in it.

    runs/<name>/
      config.yaml            resolved, with every default written out
      run.json               run id, MLflow's run id, working folder, code version: see RunInfo
      run.lock               flocked by the one live writer: {"pid", "host", "since", "job"}; empty when released
      fence/0003.json        one per attempt, created exclusively; only the highest may commit
      attempts.jsonl         {"event": "start" | "end", "attempt", "time", ...}, one line each
      status.json            {"state", "reason", "step", "time", "results", "run_again"}
      journal/rank-0.jsonl   see tracking/journal.py
      logs/attempt-0003/     rank-0.log, and error-rank-0.json of a rank that failed
      heartbeat/rank-0       see tracking/heartbeat.py
      trained-code.json      see trained_code.py
      mlflow-sync.json       see tracking/sync_state.py; mlflow-sync.lock is held by the process that carries
      report/                see report/make.py
      checkpoints/           unless checkpoint.folder says otherwise

Files that change are replaced as a whole, and synced, so a reader never sees half of one.
"""

import difflib
import os
import re
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from dist_trainer.adapters.file_lock import Owner, hold
from dist_trainer.adapters.files import (
    append_line,
    create_exclusively,
    linked,
    make_private_folder,
    plain_number,
    replace_file,
    whole_lines,
    write_json,
    writing,
)
from dist_trainer.adapters.git import code_version
from dist_trainer.adapters.records import is_record, read_record
from dist_trainer.config.near import first_few
from dist_trainer.config.redact import redact
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import NAME_PATTERN
from dist_trainer.errors import UsageError
from dist_trainer.run_records import AttemptLine, RunInfo, State, Status, WorkerError

__all__ = ["RunFolder", "RunInfo", "State", "Status", "WorkerError", "find_run"]

_FOLDERS = ("fence", "journal", "logs", "heartbeat", "checkpoints")
_OURS = {*_FOLDERS, "run.json", "run.lock", "config.yaml", "attempts.jsonl", "status.json", "slurm", "code"}
_OURS |= {"mlflow-sync.json", "mlflow-sync.lock", "times.json", "profile", "plots", "export", "report"}
_OURS |= {"trained-code.json"}
_FENCE = re.compile(r"([0-9]{4,9})[.]json")
Record = TypeVar("Record", RunInfo, Status)


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @classmethod
    def create(
        cls, path: str | Path, config_yaml: str, *, working_folder: str | Path, sweep: str | None = None
    ) -> "RunFolder":
        """Make the folder, for its owner only. UsageError: a bad name, or a run that is there already."""
        folder = cls(Path(path).absolute())
        if not re.fullmatch(NAME_PATTERN, folder.path.name):
            raise UsageError(f"a run's name must match {NAME_PATTERN}, got {folder.path.name!r}")
        make_private_folder(folder.path)
        folder._refuse_links()
        with folder.lock():  # two commands may create the same run at once
            if folder._info_path.exists():
                raise UsageError(f"{folder.path} is a run already; open it, or start afresh with --fresh")
            for name in _FOLDERS:
                make_private_folder(folder.path / name)
            replace_file(folder.config_path, config_yaml.encode())
            working = Path(working_folder).absolute()
            # run.json last: a folder without it is not a run
            folder._write_info(
                RunInfo(secrets.token_hex(8), time.time(), working, sweep=sweep, code=code_version(working))
            )
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """The run at `path`, or UsageError."""
        folder = cls(Path(path).absolute())
        if not folder._info_path.is_file():
            raise UsageError(f"{folder.path} is not a run folder: it has no run.json")
        folder._refuse_links()
        return folder

    def _refuse_links(self) -> None:
        """UsageError where one of our names leads elsewhere; the folder itself, or one above, may be a link."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name in _OURS and entry.is_symlink():
                    raise UsageError(linked(Path(entry.path)))

    def _read(self, kind: type[Record], path: Path) -> Record:
        try:
            return read_record(kind, path.read_bytes())
        except ValueError as error:
            raise UsageError(
                f"{path} cannot be read: {error}; bring it back from a copy, or start afresh with --fresh"
            ) from error

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_url(self, folder: str | None, *, shown: bool = False) -> str:
        """Where the checkpoints are, given checkpoint.folder: a local path, or a place in a store.

        `shown`: for messages, where references to variables stay in the URL of a store.
        """
        if folder is None:
            return str(self.checkpoints)
        info, place = self.info(), str(resolve(folder))
        base = str(info.working_folder / place) if "://" not in place else folder if shown else place
        return f"{base.rstrip('/')}/{info.run_id}"

    @property
    def attempts_path(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def status(self) -> Status:
        return self.read_status()

    @property
    def _info_path(self) -> Path:
        return self.path / "run.json"

    def journal_path(self, rank: int) -> Path:
        return self.path / "journal" / f"rank-{rank}.jsonl"

    def heartbeat_path(self, rank: int) -> Path:
        return self.path / "heartbeat" / f"rank-{rank}"

    def log_path(self, attempt: int, rank: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt:04d}" / f"rank-{rank}.log"

    def info(self) -> RunInfo:
        """run.json."""
        return self._read(RunInfo, self._info_path)

    def update_info(self, **changes: Any) -> RunInfo:
        """Change fields of run.json. After creation only the tracking process does, so none is lost."""
        self._write_info(info := replace(self.info(), **changes))
        return info

    def _write_info(self, info: RunInfo) -> None:
        write_json(self._info_path, {**asdict(info), "working_folder": str(info.working_folder)})

    def new_fence(self, owner: Mapping[str, Any]) -> int:
        """Take the next fence number, which shuts out every attempt before it."""
        number = self.highest_fence() + 1
        with writing(self.path / "fence"):
            while not create_exclusively(self.path / "fence" / f"{number:04d}.json", owner):
                number += 1
            make_private_folder(self.log_path(number, 0).parent)
        return number

    def highest_fence(self) -> int:
        """The newest attempt's number; 0 before the first."""
        try:
            names = os.listdir(self.path / "fence")  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{self.path / 'fence'} is no folder; bring it back, or use --fresh") from error
        return max((int(match[1]) for match in map(_FENCE.fullmatch, names) if match), default=0)

    def record(self, line: Mapping[str, Any]) -> None:
        """Append to attempts.jsonl, synced; errors without secrets. StorageError where the disk refuses it."""
        error = line.get("error")
        with writing(self.attempts_path):
            append_line(
                self.attempts_path, {**line, "error": redact(error)} if isinstance(error, str) else line
            )

    def attempts(self) -> list[dict[str, Any]]:
        """Every whole line of attempts.jsonl; one torn by a crash is left out, and one that no attempt wrote."""
        if not self.attempts_path.exists():
            return []
        lines = whole_lines(self.attempts_path.read_bytes())
        return [line for line in lines if is_record(AttemptLine, line)]

    def read_status(self) -> Status:
        """status.json; `new` before there is one."""
        try:
            return self._read(Status, self.status_path)
        except FileNotFoundError:
            return Status("new", time=0.0)

    def write_status(self, status: Status) -> None:
        """Replace status.json. StorageError where the disk refuses it; then the old one stays."""
        assert status.state in get_args(State), status.state
        results = {name: plain_number(float(value)) for name, value in status.results.items()}
        fields = {**asdict(status), "reason": redact(status.reason), "results": results}
        with writing(self.status_path):
            write_json(self.status_path, fields)

    def write_error(
        self, attempt: int, rank: int, *, error: BaseException, step: int | None, exit_code: int
    ) -> None:
        """Leave word of why `rank` failed, for the agent that shows the first one."""
        trace, text = redact("".join(traceback.format_exception(error))), redact(str(error))
        what = WorkerError(time.time(), rank, step, type(error).__name__, text, trace, exit_code)
        path = self.log_path(attempt, rank).with_name(f"error-rank-{rank}.json")
        make_private_folder(path.parent)
        write_json(path, asdict(what))

    def read_errors(self, attempt: int) -> list[WorkerError]:
        """What failed ranks of an attempt left, the earliest first; one that cannot be read is left out."""
        errors = []
        for path in self.log_path(attempt, 0).parent.glob("error-rank-*.json"):
            with suppress(OSError, ValueError):
                errors.append(read_record(WorkerError, path.read_bytes()))
        return sorted(errors, key=lambda error: (error.time, error.rank))

    def lock(
        self,
        *,
        watch_s: float = 10.0,
        job: str | None = None,
        job_is_over: Callable[[str], bool] = lambda job: False,
    ) -> AbstractContextManager[None]:
        """Be the only writer of this run while the context lasts. UsageError names the one that is there.

        Where file locks do not reach over hosts, a holder elsewhere that left no word of its end is given
        `watch_s` seconds to show a heartbeat. `job` is the scheduler's job that asks; a holder that is a part
        of a job which `job_is_over` is passed over: its processes may live on, but fences shut them out.
        """
        return hold(
            self.path / "run.lock",
            job=job,
            is_over=lambda owner: owner.job is not None and job_is_over(owner.job),
            still_alive=lambda: self._beats_within(watch_s),
            held=lambda owner: _held(self.path, owner),
        )

    def _beats_within(self, watch_s: float) -> bool:
        """Whether any heartbeat changes while we watch: clocks of two hosts are never compared."""
        first = self._heartbeats()
        deadline = time.monotonic() + watch_s
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if self._heartbeats() != first:
                return True
        return False

    def _heartbeats(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.path / "heartbeat").glob("rank-*")}


def find_run(name_or_path: str | Path, runs: str | Path) -> RunFolder:
    """A run by its folder or by its name under `runs`; UsageError names the near ones."""
    text, runs = str(name_or_path), Path(runs)
    if re.fullmatch(NAME_PATTERN, text) and (runs / text / "run.json").is_file():
        return RunFolder.open(runs / text)
    with suppress(OSError):  # too long for a file's name
        if Path(text, "run.json").is_file():
            return RunFolder.open(text)
    names = sorted(path.parent.name for path in runs.glob("*/run.json"))
    near = difflib.get_close_matches(Path(text).name, names) or names
    hint = f"; there is {first_few(near)}" if near else "; no run is there yet"
    raise UsageError(f"no run {text!r} in {runs.absolute()}, and it is no run folder{hint}")


def _held(path: Path, owner: Owner | None) -> UsageError:
    if owner is None:
        return UsageError(f"run {path.name} is being trained by another process; wait for it")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
    pid, host = owner.pid, owner.host
    who, stop = f"pid {pid} on host {host}", f"kill {pid}"
    if owner.job is not None:
        who, stop = f"SLURM job {owner.job} on host {host}", f"dist-trainer cancel {path.name}"
    elif host != socket.gethostname():
        stop = f"ssh {host} kill {pid}"
    return UsageError(
        f"run {path.name} is being trained by {who} since {since}; wait for it, or stop it with {stop}"
    )
