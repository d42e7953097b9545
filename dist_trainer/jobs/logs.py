"""Prints a run's logs, and follows them over attempts until the run has ended."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dist_trainer.jobs.listing import Queue, stand_in_queue
from dist_trainer.jobs.log_files import logs_of, newest_attempt, no_log
from dist_trainer.jobs.standing import WAITING, Standing
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.scheduler import NO_SLURM
from dist_trainer.slurm.submissions import last_job

_LOOK_EVERY_S = 0.3
_ASK_EVERY_S = 10.0  # squeue is not for polling
_ENDING_ASK_EVERY_S = 2.0
_BLOCK = 1 << 20


def show_logs(run: RunFolder, *, rank: int | None, attempt: int | None, follow: bool) -> int:
    """Print the log of a rank, or of the agents where `rank` is None; the command's exit code.

    UsageError where there is no such log, and none will come by itself.
    """
    printer = _Printer()
    try:
        _show_once(run, printer, rank, attempt, follow=follow)
        if follow:
            _Follower(run, rank, attempt, printer).follow()
    except KeyboardInterrupt:
        if not follow:
            raise
        _say("\nno longer following; the run goes on as it was")
    return 0


def _show_once(
    run: RunFolder, printer: "_Printer", rank: int | None, attempt: int | None, *, follow: bool
) -> None:
    paths = logs_of(run, rank, attempt)
    shown = printer.print_new(paths)
    _hint_where_empty(run, rank, paths)
    if shown and (follow or _is_told(run)):
        return
    now = stand_in_queue(run, Queue())
    may_come = attempt is None and (rank is None or newest_attempt(run) == 0)
    if not shown and not (may_come and now.is_live):
        raise no_log(run, rank, attempt)
    if not follow and attempt is None and (now.state in WAITING or not shown):
        _say(("\n" if shown else "") + _what_it_waits_for(now))


@dataclass
class _Printer:
    """Copies what is new in files to standard output; a line says where another file begins."""

    out: BinaryIO = field(default_factory=lambda: sys.stdout.buffer)
    read: dict[Path, int] = field(default_factory=dict)
    last: Path | None = None

    def print_new(self, paths: list[Path]) -> bool:
        """Print what was appended since the last time; whether there was any file."""
        for path in paths:
            self._copy(path)
        return bool(paths)

    def _copy(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self.read.get(path, 0))
            block = file.read(_BLOCK)
            if (block or path not in self.read) and path != self.last:
                _say(f"{'' if self.last is None else chr(10)}==> {path} <==")
                self.last = path
            while block:
                self.out.write(block)
                block = file.read(_BLOCK)
            self.read[path] = file.tell()
        self.out.flush()


class _Follower:
    """Goes on printing until nothing more can come."""

    def __init__(self, run: RunFolder, rank: int | None, attempt: int | None, printer: _Printer) -> None:
        self._run, self._rank, self._attempt, self._printer = run, rank, attempt, printer
        self._newest = newest_attempt(run)
        self._status = ""
        self._told = ""
        self._asked = 0.0
        self._now: Standing | None = None
        self._may_go_on = False  # its folder says so, and SLURM is silent

    def follow(self) -> None:
        """Return when the run, or the attempt that was asked for, is over and printed."""
        while True:
            now = self._ask_if_due()
            number = newest_attempt(self._run)  # before the last look at the files: nothing is missed
            self._print_all(number)
            if not (now.is_live or self._may_go_on):
                return _say(f"\n{_how_it_stands(now)}")
            if self._attempt is not None and number > self._attempt:
                return _say(f"\nattempt {self._attempt} is over; the run went on in attempt {number}")
            time.sleep(_LOOK_EVERY_S)

    def _print_all(self, number: int) -> None:
        if self._attempt is not None or self._rank is None:
            self._printer.print_new(logs_of(self._run, self._rank, self._attempt))
            return
        for attempt in range(max(1, self._newest), number + 1):  # each to its end
            if attempt > self._newest > 0:
                _say(f"\nattempt {attempt} has begun")
            self._printer.print_new(logs_of(self._run, self._rank, attempt))
        self._newest = number

    def _ask_if_due(self) -> Standing:
        """How the run stands: asked for anew at times, and when its status changes."""
        status = self._run.read_status()
        ending = self._now is not None and self._now.state == "ending"
        every = _ENDING_ASK_EVERY_S if ending else _ASK_EVERY_S
        if self._now is None or status.state != self._status or time.monotonic() - self._asked >= every:
            queue = Queue()
            self._now = stand_in_queue(self._run, queue)
            self._status, self._asked = status.state, time.monotonic()
            is_silent = queue.problem not in ("", NO_SLURM)
            self._may_go_on = (
                is_silent and not self._now.is_live and (status.run_again or status.state == "new")
            )
            if self._may_go_on:
                self._tell(f"{_how_it_stands(self._now)}; {queue.problem}; still following")
            if self._now.state in WAITING:
                self._tell(_what_it_waits_for(self._now))
        return self._now

    def _tell(self, text: str) -> None:
        if text != self._told:
            _say(f"\n{text}")
        self._told = text


def _hint_where_empty(run: RunFolder, rank: int | None, paths: list[Path]) -> None:
    """A rank prints only what the user's code does: its progress is the agent's to tell."""
    if rank is None or not paths or any(path.stat().st_size for path in paths):
        return
    agents = logs_of(run, None, None)
    progress = f"; the progress: dist-trainer logs {run.path.name} --rank agent" if agents else ""
    _say(f"(rank {rank} has printed nothing{progress})")


def _is_told(run: RunFolder) -> bool:
    """Whether no job can wait to go on; a status of running may be that of workers that were killed."""
    return last_job(run) is None or run.read_status().state == "finished"


def _what_it_waits_for(now: Standing) -> str:
    if now.state in WAITING:
        begins = "waits to go on" if now.attempts else "has not begun yet"
        return f"job {now.job} {begins} ({now.state}): {now.note}"
    return f"run {now.run} has no log yet: its workers are just starting"


def _how_it_stands(now: Standing) -> str:
    step = f" at step {now.step}" if now.step is not None else ""
    return f"run {now.run}: {now.state}{step}{f'; {now.note}' if now.note else ''}"


def _say(text: str) -> None:
    """A line of ours, in order with the log's."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
