"""What a sweep shows: a line for each cell that starts or ends, a table of those that run, and all of them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dist_trainer.config.schema import BestConfig
from dist_trainer.errors import FINISHED, STOPPED
from dist_trainer.jobs.pace import pace_of
from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import Cell, Sweep, show_value
from dist_trainer.sweeps.rows import Row, measured

_REFRESH_S = 1.0
_TRY_AGAIN = ("stopped", "failed", "do-not-requeue", "lost")


class SweepScreen:
    """The words of a sweep while its cells run here; the table is for terminals alone."""

    def __init__(self, sweep: Sweep, metric: BestConfig, console: Console) -> None:
        self._sweep = sweep
        self._metric = metric
        self._console = console
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._refreshed = 0.0
        self._ended = 0
        self._failed = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The table is there while the context lasts."""
        if self._live is None:
            yield
            return
        with self._live:
            yield
            self._live.update(Group(), refresh=True)

    def tick(self, running: Sequence[tuple[Cell, RunFolder]], waiting: int) -> None:
        """Draw the table anew, now and then."""
        now = time.monotonic()
        if self._live is None or now - self._refreshed < _REFRESH_S:
            return
        self._refreshed = now
        table = cell_table(self._sweep, ["step", "loss"])
        for cell, run in running:
            pace = pace_of(run)
            loss = "" if pace.loss is None else f"{pace.loss:.4g}"
            table.add_row(*value_columns(self._sweep, cell), _steps(pace.step, pace.total_steps), loss)
        failed = f" ({self._failed} failed)" if self._failed else ""
        counts = f"{len(running)} running, {self._ended} ended{failed}, {waiting} to come"
        self._live.update(Group(table, Text(counts)), refresh=True)

    def started(self, cell: Cell) -> None:
        """A cell starts."""
        self.say(f"cell {cell.index} ({cell.shown}) started")

    def ended(self, cell: Cell, run: RunFolder, code: int, seconds: float, log: Path) -> None:
        """A cell ended, with this exit code after so many seconds."""
        self._ended += 1
        status = run.read_status()
        took = f" ({seconds:.0f} s)"
        if code == FINISHED:
            self.say(f"cell {cell.index} finished at step {status.step}{self._measure(run)}{took}")
        elif code == STOPPED:
            where = f", saved at step {status.step}" if status.state == "stopped" and status.step else ""
            self.say(f"cell {cell.index} stopped{where}{took}")
        else:
            self._failed += 1
            why = status.reason if status.state in ("failed", "do-not-requeue") else _last_line(log)
            self.say(f"cell {cell.index} failed: {_first_line(why) or f'exit code {code}'}; its log: {log}")

    def stopping(self, running: int) -> None:
        """A request to stop came."""
        self.say(f"stopping: {running} running, which save; Ctrl-C once more leaves at once")

    def say(self, text: str) -> None:
        """A line of its own, above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _measure(self, run: RunFolder) -> str:
        value = measured(run, self._metric)
        return "" if value is None else f", {self._metric.metric} {value:.4g}"


def print_rows(sweep: Sweep, rows: Sequence[Row], metric: BestConfig, console: Console) -> None:
    """The table of all cells, what there is to say about single ones, and how many there are of each kind."""
    table = cell_table(sweep, ["state", "step", metric.metric])
    for row in rows:
        state = row.standing
        steps = _steps(state.step, state.total_steps)
        table.add_row(*value_columns(sweep, row.cell), state.state, steps, show_number(row.value))
    console.print(table)
    for row in rows:
        if row.standing.note and row.standing.state in (*_TRY_AGAIN, "held"):
            console.print(f"cell {row.cell.index}: {row.standing.note}", markup=False, soft_wrap=True)
    for problem in dict.fromkeys(row.unknown for row in rows if row.unknown):
        console.print(f"not known how cells stand that SLURM had: {problem}", markup=False, soft_wrap=True)
    console.print(counted(rows), markup=False, soft_wrap=True)


def counted(rows: Sequence[Row]) -> str:
    """12 cells: 8 finished, 2 running, 2 new."""
    states = [row.standing.state for row in rows]
    kinds = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(rows)} cells: {kinds}"


def print_cells(sweep: Sweep, cells: Sequence[Cell], console: Console) -> None:
    """The cells alone, before any of them is made."""
    table = cell_table(sweep, ["run"])
    for cell in cells:
        table.add_row(*value_columns(sweep, cell), cell.run)
    console.print(table)


def show_number(value: float | None) -> str:
    """A metric's value in a table."""
    return "-" if value is None else f"{value:.4g}"


def cell_table(sweep: Sweep, columns: Sequence[str]) -> Table:
    """One column for each key of the grid, by its last word where that is enough."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cell", justify="right")
    keys = list(sweep.grid)
    short = [key.rpartition(".")[2] for key in keys]
    for key, word in zip(keys, short, strict=True):
        table.add_column(word if short.count(word) == 1 else key, overflow="fold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="left")
    return table


def value_columns(sweep: Sweep, cell: Cell) -> list[str | Text]:
    """What such a table begins with for a cell."""
    return [str(cell.index), *(Text(show_value(cell.values[key])) for key in sweep.grid)]


def _steps(step: int | None, total: int | None) -> str:
    if step is None:
        return "-"
    return f"{step}/{total}" if total else str(step)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2]
