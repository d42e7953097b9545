"""What a sweep's command line means: the cells of its grid, resolved, checked and frozen."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config.check import Imported, import_in_child
from dist_trainer.config.load import Loaded, dump_config, load_config, read_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder, cell_name, check_name, shown_values
from dist_trainer.sweeps.grid import (
    Values,
    as_overrides,
    combinations,
    drawn,
    given,
    given_twice,
    parse_grid,
)

Check = Callable[[Loaded], Sequence[tuple[str, str]]]  # what is wrong: (dotted key, message) pairs
_OBJECTS = ("model", "data", "task", "loss", "metrics", "optimizer", "scheduler", "hooks")  # with targets


@dataclass(frozen=True)
class Planned:
    """A sweep that nothing speaks against."""

    sweep: Sweep
    first: Loaded  # the first cell's configuration
    modules: Sequence[tuple[str, Path]]  # name and file of the user's own that the cells import


def cell_config(folder: SweepFolder, cell: Cell) -> Config:
    """A cell's configuration, as it is in its run folder."""
    return read_config(folder.run_of(cell).config_path)


def plan(
    files: Sequence[str],
    overrides: Sequence[str],
    grid: Sequence[str],
    *,
    name: str | None = None,
    draws: int | None = None,
    check: Check = lambda loaded: (),
) -> Planned:
    """The sweep that the words of the command mean. ConfigError lists the cells that are wrong, with why.

    `check` finds what else may be wrong with a cell, where it is to run.
    """
    axes = parse_grid(grid)
    if problems := given_twice(axes, overrides):
        raise ConfigError("\n".join(problems))
    seed = _seed(files, overrides) if draws else 0
    table = drawn(axes, draws, seed=seed) if draws else combinations(axes)
    loaded, modules = _resolved(files, overrides, table, check)
    sweep = name or f"{loaded[0].config.name}-sweep"
    check_name(sweep)
    cells = []
    for index, (values, each) in enumerate(zip(table, loaded, strict=True)):
        run = cell_name(sweep, index)
        cells.append(Cell(index, values, run, dump_config(each.config.model_copy(update={"name": run}))))
    return Planned(Sweep(sweep, str(Path.cwd()), given(axes), cells, random=draws), loaded[0], modules)


def import_cells(configs: Sequence[Config], folder: Path | None = None) -> tuple[list[int], Imported]:
    """Import the targets of configurations, in `folder` or here: for each the number of its answer, and those.

    Configurations that differ in their seed alone have the same one.
    """
    alike: dict[str, int] = {}
    distinct: list[Config] = []
    numbers = []
    for config in configs:
        objects = config.model_dump(include=set(_OBJECTS))
        key = json.dumps(objects, sort_keys=True, default=str)
        if key not in alike:
            alike[key] = len(distinct)
            distinct.append(config)
        numbers.append(alike[key])
    return numbers, import_in_child(distinct, folder)


def freeze(sweep: Sweep, runs: str | Path) -> SweepFolder:
    """Write the sweep down and make the run folder of every cell. UsageError where one is there already."""
    with frozen(sweep, runs) as folder:
        return folder


@contextmanager
def frozen(sweep: Sweep, runs: str | Path) -> Iterator[SweepFolder]:
    """The same, and nobody else gives its cells to SLURM while the context lasts."""
    refuse_existing(sweep, runs)
    path = Path(runs, sweep.name).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with SweepFolder(path).lock():  # before sweep.json is there: from then on it can be resumed
        folder = SweepFolder.create(path, sweep)
        for cell in sweep.cells:
            folder.run_of(cell)
        yield folder


def unmake(folder: SweepFolder) -> None:
    """Take back a sweep of which nothing was ever started."""
    for cell in folder.sweep.cells:
        shutil.rmtree(folder.folder_of(cell), ignore_errors=True)
    shutil.rmtree(folder.path)


def refuse_existing(sweep: Sweep, runs: str | Path) -> None:
    """UsageError where the sweep or one of its runs is there."""
    path = Path(runs, sweep.name)
    if (path / "sweep.json").exists():
        raise UsageError(
            f"sweep {sweep.name} is there already, in {path.absolute()}: `dist-trainer sweep resume {sweep.name}`"
            " runs what is missing; another --name begins another sweep"
        )
    for there in (path, *(Path(runs, cell.run) for cell in sweep.cells)):
        if there.exists():
            raise UsageError(f"{there.absolute()} is there already; give the sweep another --name")


def _seed(files: Sequence[str], overrides: Sequence[str]) -> int:
    """The configuration's seed decides the draws; one that is wrong otherwise is refused with the cells."""
    try:
        return load_config(files, overrides).config.seed
    except ConfigError:
        return 0


def _resolved(
    files: Sequence[str], overrides: Sequence[str], table: Sequence[Values], check: Check
) -> tuple[list[Loaded], Sequence[tuple[str, Path]]]:
    loaded: dict[int, Loaded] = {}
    problems: dict[int, list[str]] = {}
    for index, values in enumerate(table):
        try:
            loaded[index] = load_config(files, [*overrides, *as_overrides(values)])
        except ConfigError as error:
            problems[index] = str(error).splitlines()
    numbers, imported = import_cells([each.config for each in loaded.values()])
    for (index, each), number in zip(loaded.items(), numbers, strict=True):
        if found := [*imported.problems[number], *check(each)]:
            problems[index] = str(each.error(found)).splitlines()
    if problems:
        raise ConfigError(_listed(problems, table))
    return list(loaded.values()), imported.modules


def _listed(problems: Mapping[int, list[str]], table: Sequence[Values]) -> str:
    """Each problem with its cell; one that all cells share is no cell's."""
    shared = [
        line for line in next(iter(problems.values())) if all(line in each for each in problems.values())
    ]
    if len(problems) < len(table):
        shared = []
    lines = list(shared)
    for index, found in sorted(problems.items()):
        own = [line for line in found if line not in shared]
        lines += [f"cell {index} ({shown_values(table[index])}): {line}" for line in own]
    if not shared:
        lines.append(f"{len(problems)} of {len(table)} cells are wrong; nothing was started")
    return "\n".join(lines)
