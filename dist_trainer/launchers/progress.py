"""What the user sees of a training: a bar on a terminal, a line now and then elsewhere. Reads, never asks.

The step comes from rank 0's heartbeat, everything else from its journal, so nothing that trains waits for it.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import OF_A_STEP, read_heartbeat
from dist_trainer.tracking.journal import read_journal

_DRAW_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
_SPEED_OVER_S = 30.0
_FULL_BELOW = 64 << 10  # bytes


@dataclass
class Position:
    """Where a training stands."""

    step: int = 0
    total_steps: int | None = None
    phase: str = "starting workers"
    values: dict[str, float] = field(default_factory=dict)
    seen: list[tuple[float, int]] = field(default_factory=list)  # (monotonic time, step), for the speed

    def at(self, step: int, now: float) -> None:
        """Note the step; a resume may go back."""
        if self.seen and step < self.seen[-1][1]:
            self.seen.clear()
        if not self.seen or step > self.seen[-1][1]:
            self.seen.append((now, step))
        while len(self.seen) > 2 and now - self.seen[1][0] > _SPEED_OVER_S:
            del self.seen[0]
        self.step = step

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the last step, at the recent speed."""
        if self.total_steps is None or len(self.seen) < 2:
            return None
        (begin, first), (end, last) = self.seen[0], self.seen[-1]
        return (self.total_steps - self.step) * (end - begin) / (last - first)

    def parts(self) -> list[str]:
        """Epoch, loss, samples per second, share of waiting for data and time left; only what is known."""
        known = self.values
        parts = [
            f"epoch {known['epoch']:.1f}" if "epoch" in known else "",
            f"loss {known['train/loss']:.4g}" if "train/loss" in known else "",
            f"{_short(known['samples_per_s'])} samples/s" if "samples_per_s" in known else "",
            f"data {known['data_wait_share']:.0%}" if "data_wait_share" in known else "",
            f"{_clock(self.remaining_s)} left" if self.remaining_s is not None else "",
        ]
        return [part for part in parts if part]


class Progress:
    """Shows one command's training; `tick` as often as you like."""

    def __init__(self, run: RunFolder, console: Console, total_steps: int | None = None) -> None:
        """`total_steps`: where the training will end by itself before those of its configuration."""
        self._run = run
        self._total_steps = total_steps
        self._console = console
        self._journal = run.journal_path(0)
        self._offset = self._journal.stat().st_size if self._journal.exists() else 0
        self._first_attempt = run.highest_fence() + 1
        self._position = Position()
        self._bar = _bar(console) if console.is_terminal else None
        label, position = self._position.phase, self._position
        self._task = self._bar.add_task(label, total=None, position=position) if self._bar else None
        self._drawn = self._line_written = time.monotonic()
        self._line_step = 0
        self._bad_rows = 0
        self._is_full = False
        if self._bar:
            self._bar.start()

    def tick(self) -> None:
        """Read what is new and show it, if it is time to."""
        now = time.monotonic()
        if now - self._drawn < _DRAW_EVERY_S:
            return
        self._drawn = now
        self._read(now)
        self._look_for_room()
        if self._bar is not None and self._task is not None:
            position = self._position
            self._bar.update(
                self._task,
                description=position.phase,
                completed=position.step,
                total=position.total_steps,
                refresh=True,
            )
        elif now - self._line_written >= _LINE_EVERY_S and self._position.step != self._line_step:
            self._write_line(now)

    def say(self, text: str) -> None:
        """A sentence of its own, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, text: str) -> None:
        """A sentence about the workers, after what they did before it."""
        self._read(time.monotonic())
        self.say(text)

    def close(self) -> None:
        """Show what came last and take the bar away."""
        self._read(time.monotonic())
        if self._bad_rows:
            self.say(f"{self._bad_rows} times a row was left out as bad (data.bad_rows: skip)")
        if self._bar:
            self._bar.stop()

    def _look_for_room(self) -> None:
        """Say that the run folder's disk is full: the workers cannot, since what they say is a file there."""
        disk = os.statvfs(self._run.path)
        blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
        was_full, self._is_full = self._is_full, blocks * disk.f_frsize < _FULL_BELOW
        if self._is_full and not was_full:
            self.say(
                f"warning: the disk of {self._run.path} is full: training goes on, and keeps its metrics in memory; "
                "make room, so that they and the next checkpoint can be written"
            )

    def _write_line(self, now: float) -> None:
        position = self._position
        self._line_written, self._line_step = now, position.step
        of = f"/{position.total_steps}" if position.total_steps else ""
        self.say(", ".join([f"step {position.step}{of}", *position.parts()]))

    def _read(self, now: float) -> None:
        beat = read_heartbeat(self._run.heartbeat_path(0))
        if beat and beat.attempt >= self._first_attempt:
            self._position.phase = "train" if beat.phase in OF_A_STEP else beat.phase
            if beat.trained_step is not None:
                self._position.at(beat.trained_step, now)
        records, self._offset = read_journal(self._journal, self._offset)
        for record in records:
            self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "metrics":
            values = {key: float(value) for key, value in record["values"].items()}
            self._position.values.update(values)
            evaluated = {key: value for key, value in values.items() if key.startswith(("val/", "test/"))}
            if evaluated:
                shown = ", ".join(f"{key} {value:.4g}" for key, value in evaluated.items())
                self.say(f"step {record['step']}: {shown}")
        elif record["kind"] == "started":
            total = self._position.total_steps = self._total_steps or record["total_steps"]
            self.say(_beginning({**record, "total_steps": total}))
        elif record["kind"] == "bad_rows":
            self._bad_rows += int(record["skipped"])
        elif record["kind"] in ("alarm", "straggler"):
            self.say(f"warning: {record['message']}")
        elif record["kind"] == "profiled":
            self.say(record["message"])


def _beginning(record: Mapping[str, Any]) -> str:
    ranks = "1 rank" if record["world_size"] == 1 else f"{record['world_size']} ranks"
    device = str(record["device"]).partition(":")[0]
    where = f"going on at step {record['first_step']} of" if record["first_step"] else "training"
    return f"{where} {record['total_steps']} steps with {ranks} on {device}"


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),  # it takes what the words leave
        _Steps(),
        _Parts(),
        console=console,
        auto_refresh=False,  # no thread: the agent forks and is watched
        transient=True,
        expand=True,
    )


class _Steps(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            f"{int(task.completed)}/{int(task.total)}" if task.total else "", style="bold", no_wrap=True
        )


class _Parts(ProgressColumn):
    max_refresh = 0.0

    def render(self, task: Task) -> Text:
        parts = " ".join(task.fields["position"].parts())
        for long, short in ((" samples/s", "/s"), (" left", ""), ("epoch ", "ep ")):
            parts = parts.replace(long, short)
        return Text(parts, no_wrap=True)


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _clock(seconds: float | None) -> str:
    minutes, seconds = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
