"""What a sweep's command line means: the cells of its grid, resolved, checked and frozen."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dist_trainer.config.check import check_all_in_child
from dist_trainer.config.load import Loaded, dump_config, load_config, read_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import ConfigError, UsageError
from dist_trainer.launchers.sweep_grid import (
    Values,
    as_overrides,
    combinations,
    drawn,
    given,
    given_twice,
    parse_grid,
)
from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder, cell_name, check_name, shown_values

_OBJECTS = ("model", "data", "task", "loss", "metrics", "optimizer", "scheduler", "hooks")  # with targets


def cell_run(sweep_folder: str | Path, index: int) -> RunFolder:
    """The run of a cell, for the element of an array job that has its number. Imports no torch.

    Raises UsageError where there is no such sweep, or no such cell in it.
    """
    sweep = SweepFolder.open(sweep_folder)
    return sweep.run_of(sweep.cell(index))


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
    check: Callable[[Loaded], Sequence[tuple[str, str]]] = lambda loaded: (),
) -> Sweep:
    """The sweep that the words of the command mean. ConfigError lists the cells that are wrong, with why.

    `check` finds what else may be wrong, and the same in all cells: (dotted key, message) pairs.
    """
    axes = parse_grid(grid)
    if problems := given_twice(axes, overrides):
        raise ConfigError("\n".join(problems))
    seed = _seed(files, overrides) if draws else 0
    table = drawn(axes, draws, seed=seed) if draws else combinations(axes)
    loaded = _resolved(files, overrides, table)
    if wrong := check(loaded[0]):
        raise loaded[0].error(wrong)
    configs = [each.config for each in loaded]
    sweep = name or f"{configs[0].name}-sweep"
    check_name(sweep)
    cells = []
    for index, (values, config) in enumerate(zip(table, configs, strict=True)):
        run = cell_name(sweep, index)
        cells.append(Cell(index, values, run, dump_config(config.model_copy(update={"name": run}))))
    return Sweep(sweep, str(Path.cwd()), given(axes), cells, random=draws)


def freeze(sweep: Sweep, runs: str | Path) -> SweepFolder:
    """Write the sweep down and make the run folder of every cell. UsageError where one is there already."""
    path = Path(runs, sweep.name).absolute()
    refuse_existing(sweep, runs)
    folder = SweepFolder.create(path, sweep)
    for cell in sweep.cells:
        folder.run_of(cell)
    return folder


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


def _resolved(files: Sequence[str], overrides: Sequence[str], table: Sequence[Values]) -> list[Loaded]:
    loaded: dict[int, Loaded] = {}
    problems: dict[int, list[str]] = {}
    for index, values in enumerate(table):
        try:
            loaded[index] = load_config(files, [*overrides, *as_overrides(values)])
        except ConfigError as error:
            problems[index] = str(error).splitlines()
    problems |= _wrong_targets(loaded)
    if problems:
        raise ConfigError(_listed(problems, table))
    return list(loaded.values())


def _wrong_targets(loaded: Mapping[int, Loaded]) -> dict[int, list[str]]:
    """What is wrong with the targets of each cell; cells that differ in their seed alone are checked once."""
    alike: dict[str, list[int]] = {}
    for index, each in loaded.items():
        objects = each.config.model_dump(include=set(_OBJECTS))
        alike.setdefault(json.dumps(objects, sort_keys=True, default=str), []).append(index)
    if not alike:
        return {}
    answers = check_all_in_child([loaded[indices[0]].config for indices in alike.values()])
    return {
        index: str(loaded[index].error(found)).splitlines()
        for indices, found in zip(alike.values(), answers, strict=True)
        for index in indices
        if found
    }


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
