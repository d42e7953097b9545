"""A sweep's folder: its cells, frozen before the first of them starts.

    runs/<name>/
      sweep.json    written once: {"id", "name", "created", "working_folder", "grid": {key: as given}, "random",
                    "cells": [{"index", "values": {key: value}, "run", "config": the run's config.yaml}, ...]}
      logs/         what the cells that ran on this machine printed: 0003.log
      sweep.lock    held while cells are given to SLURM
      mlflow.json   the run in MLflow whose children the cells are: see tracking/sweep_parent.py
      slurm/, code/ as in a run folder, for the array job that runs the cells
    runs/<name>-0003/   cell 3, an ordinary run

Imports no torch: a job's first process reads it.
"""

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dist_trainer.adapters.file_lock import Owner, hold
from dist_trainer.adapters.files import create_exclusively
from dist_trainer.config.near import first_few
from dist_trainer.config.schema import NAME_PATTERN
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder

MAX_CELLS = 10_000
LONGEST_NAME = 64 - len("-0000")  # a cell's name is a run's


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep, and the run that trains it."""

    index: int
    values: dict[str, Any]  # by dotted key, what makes it another cell than the others
    run: str
    config: str  # the run's config.yaml

    @property
    def shown(self) -> str:
        """Its values on one line."""
        return shown_values(self.values)


@dataclass(frozen=True)
class Sweep:
    """What sweep.json says."""

    name: str
    working_folder: str  # where the command was given: relative paths are relative to it
    grid: dict[str, str]  # by dotted key, the values as they were given
    cells: Sequence[Cell]
    random: int | None = None  # how many cells were drawn; None: all of the grid
    id: str = ""
    created: float = 0.0


@dataclass(frozen=True)
class SweepFolder:
    """One sweep on disk."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, sweep: Sweep) -> "SweepFolder":
        """Freeze the sweep. UsageError where one is there already."""
        folder = cls(Path(path).absolute())
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {**asdict(sweep), "id": secrets.token_hex(8), "created": time.time()}
        if not create_exclusively(folder._sweep_path, content):
            raise UsageError(f"{folder.path} is a sweep already")
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "SweepFolder":
        """The sweep at `path`, or UsageError."""
        folder = cls(Path(path).absolute())
        if not folder._sweep_path.is_file():
            raise UsageError(f"{folder.path} is not a sweep: it has no sweep.json")
        return folder

    @property
    def _sweep_path(self) -> Path:
        return self.path / "sweep.json"

    @cached_property
    def sweep(self) -> Sweep:
        """sweep.json; UsageError where it was cut short as it was written."""
        try:
            fields = json.loads(self._sweep_path.read_text())
            return Sweep(**{**fields, "cells": [Cell(**cell) for cell in fields["cells"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            problem = f"{self._sweep_path} cannot be read ({error}); remove {self.path} and begin again"
            raise UsageError(problem) from error

    def cell(self, index: int) -> Cell:
        """One cell by its number; UsageError names those that there are."""
        cells = self.sweep.cells
        if not 0 <= index < len(cells):
            raise UsageError(
                f"sweep {self.path.name} has no cell {index}; its cells are 0 to {len(cells) - 1}"
            )
        return cells[index]

    def folder_of(self, cell: Cell) -> Path:
        """The cell's run folder, which may not be there yet."""
        return self.path.parent / cell.run

    def run_of(self, cell: Cell) -> RunFolder:
        """The cell's run; created if it is not there yet."""
        folder = self.folder_of(cell)
        if not (folder / "run.json").is_file():
            with suppress(UsageError):  # another process was quicker
                working_folder = self.sweep.working_folder
                RunFolder.create(folder, cell.config, working_folder=working_folder, sweep=str(self.path))
        return RunFolder.open(folder)

    def lock(self) -> AbstractContextManager[None]:
        """Be the only one who gives cells to SLURM while the context lasts; UsageError names the other."""
        return hold(self.path / "sweep.lock", held=self._held)

    def _held(self, owner: Owner | None) -> UsageError:
        who = f"pid {owner.pid} on host {owner.host}" if owner else "another command"
        return UsageError(f"sweep {self.path.name} is being submitted by {who}; look again when it is done")

    def log_path(self, cell: Cell) -> Path:
        """What the cell prints where it runs on this machine."""
        return self.path / "logs" / f"{cell.index:04d}.log"


def find_sweep(name_or_path: str, runs: str | Path) -> SweepFolder:
    """A sweep by its folder or its name under `runs`; UsageError names those that are there."""
    runs = Path(runs)
    for path in (runs / name_or_path, Path(name_or_path)):
        with suppress(OSError):  # too long for a file's name
            if (path / "sweep.json").is_file():
                return SweepFolder.open(path)
    there = sorted(path.parent.name for path in runs.glob("*/sweep.json"))
    hint = f"; there is {first_few(there)}" if there else "; no sweep is there yet"
    raise UsageError(f"no sweep {name_or_path!r} in {runs.absolute()}{hint}")


def cell_name(sweep: str, index: int) -> str:
    """What the run of a cell is called."""
    return f"{sweep}-{index:04d}"


def check_name(name: str) -> None:
    """UsageError where the cells of a sweep of this name could not be named after it."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise UsageError(
            f"a sweep's name must match {NAME_PATTERN} and have at most {LONGEST_NAME} characters, got {name!r}"
            "; give another one with --name"
        )


def show_value(value: Any) -> str:
    """A value as it would be written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown_values(values: Mapping[str, Any]) -> str:
    """Values on one line: optimizer.lr=0.1, seed=0."""
    return ", ".join(f"{key}={show_value(value)}" for key, value in values.items())
