"""The `sweep` command: a configuration and a grid begin one; status, resume and best are words of their own."""

from functools import partial
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from dist_trainer.cli.completion import complete_config, complete_sweep
from dist_trainer.cli.words import RUNS, SETTINGS, Json, Runs, exit_with, note_run
from dist_trainer.config.command_line import split_arguments
from dist_trainer.config.near import did_you_mean
from dist_trainer.errors import UsageError

_BEGIN = "begin"


class SweepWords(TyperGroup):
    """Whatever does not start with status, resume or best begins a sweep."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the word before the arguments that a sweep begins with."""
        if not args or args[0] not in self.commands:
            args = [_BEGIN, *(args or ["--help"])]
        return super().parse_args(ctx, args)


class BeginCommand(TyperCommand):
    """Its help is that of `sweep` itself."""

    def get_usage(self, ctx: Any) -> str:
        """Both forms."""
        sweep = ctx.parent.command_path
        return (
            f"Usage: {sweep} CONFIG... [KEY=VALUE]... --grid KEY=VALUES [OPTIONS]\n"
            f"       {sweep} status|resume|best NAME [OPTIONS]"
        )


app = typer.Typer(**SETTINGS)
sweep_app = typer.Typer(
    cls=SweepWords,
    help="Train a grid of configurations; see how it stands, go on, find the best.",
    **SETTINGS,
)
app.add_typer(sweep_app, name="sweep")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A sweep's name, or its folder.",
        callback=note_run,
        autocompletion=complete_sweep,
    ),
]
Shared = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... KEY=VALUE...",
        help="What all cells share: YAML files, then values.",
        autocompletion=complete_config,
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES",
        help="A key that differs: optimizer.lr=0.1,0.03 or seed=0:5; may be repeated, every combination"
        " is a cell and the last key changes fastest. With --random also uniform(a,b), loguniform(a,b).",
    ),
]
Draws = Annotated[
    int | None, typer.Option("--random", min=1, metavar="N", help="Draw N cells of the grid by the seed.")
]
NewName = Annotated[
    str | None, typer.Option(help="The sweep's name; default: the configuration's and -sweep.")
]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="Cells at a time; default: one here, in SLURM all that get nodes.")
]
Local = Annotated[bool, typer.Option("--local", help="Run on this machine even where there is SLURM.")]
Only = Annotated[int | None, typer.Option(metavar="CELL", help="Run this cell alone, by its number.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and make nothing.")]
NoSnapshot = Annotated[
    bool, typer.Option("--no-snapshot", help="Run the code as it is when a cell starts, without a copy.")
]


@sweep_app.command(_BEGIN, cls=BeginCommand, hidden=True)
def begin(
    ctx: typer.Context,
    arguments: Shared,
    grid: Grid = None,
    draws: Draws = None,
    parallel: Parallel = None,
    local: Local = False,
    only: Only = None,
    name: NewName = None,
    dry_run: DryRun = False,
    no_snapshot: NoSnapshot = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Train every cell of a grid: in SLURM as one job, or on this machine one after another.

    Then `sweep status NAME` shows how the cells stand, `sweep resume NAME` runs those that are missing, and
    `sweep best NAME` compares them by a metric; each has a --help of its own.
    """
    files, values = split_arguments(arguments)
    if not grid and files and (near := did_you_mean(files[0], ["status", "resume", "best"])):
        raise UsageError(f"sweep {files[0]}: there is no such word{near}")
    from dist_trainer.sweeps.plan import plan
    from dist_trainer.sweeps.sweep import Way, check_cell, is_local
    from dist_trainer.sweeps.sweep import begin as start

    here = is_local(local, as_json=as_json)
    check = partial(check_cell, local=here)
    planned = plan(files, values, grid or [], name=name, draws=draws, check=check)
    note_run(ctx, planned.sweep.name)
    exit_with(start(planned, Way(here, parallel, only, dry_run, not no_snapshot, runs, as_json)))


@sweep_app.command()
def status(sweep: Name, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Show every cell: its values, its state, how far it is and its metric so far."""
    from dist_trainer.sweep_folder import find_sweep
    from dist_trainer.sweeps.sweep import status as show

    exit_with(show(find_sweep(sweep, runs), as_json=as_json))


@sweep_app.command()
def resume(
    sweep: Name,
    parallel: Parallel = None,
    local: Local = False,
    only: Only = None,
    dry_run: DryRun = False,
    no_snapshot: NoSnapshot = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Run the cells that are not finished, each from where it is."""
    from dist_trainer.sweep_folder import find_sweep
    from dist_trainer.sweeps.sweep import Way, is_local
    from dist_trainer.sweeps.sweep import resume as start

    found = find_sweep(sweep, runs)
    here = is_local(local, as_json=as_json)
    exit_with(start(found, Way(here, parallel, only, dry_run, not no_snapshot, runs, as_json)))


@sweep_app.command()
def best(
    sweep: Name,
    metric: Annotated[
        str | None,
        typer.Option(help="What to compare by; default: that of checkpoint.keep_best, else val/loss."),
    ] = None,
    mode: Annotated[
        Literal["min", "max"] | None, typer.Option(help="Whether less or more of it is better.")
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Compare the cells by a metric, and name the checkpoint to go on with."""
    from dist_trainer.sweep_folder import find_sweep
    from dist_trainer.sweeps.best import best as show
    from dist_trainer.sweeps.best import metric_by

    folder = find_sweep(sweep, runs)
    exit_with(show(folder, metric_by(folder, metric, mode), as_json=as_json))
