"""The command that looks for a value of the configuration: `tune lr`."""

from pathlib import Path
from typing import Annotated

import typer

from dist_trainer.cli.words import (
    RUNS,
    SETTINGS,
    Arguments,
    Json,
    Runs,
    Workers,
    exit_with,
    load,
    note_run,
    print_json,
)

app = typer.Typer(**SETTINGS)
tune_app = typer.Typer(help="Look for a value of a configuration by a short training.", **SETTINGS)
app.add_typer(tune_app, name="tune")


@tune_app.callback()
def tune() -> None:
    """Look for a value of a configuration by a short training."""


@tune_app.command("lr")
def lr(
    ctx: typer.Context,
    arguments: Arguments,
    lowest: Annotated[float, typer.Option("--min", metavar="RATE", help="The first rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--max", metavar="RATE", help="The last one.")] = 10.0,
    steps: Annotated[int, typer.Option(metavar="N", help="Rates to try, a step each.")] = 100,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture: .png.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Train a short copy of a run with a growing learning rate, and suggest the one to use.

    Nothing of it is kept. 0: there is a suggestion; 1: the loss never fell clearly.
    """
    from dist_trainer.planning.plot import check_plot
    from dist_trainer.tuning.range_test import Rates

    tried = Rates(lowest, highest, steps)
    if plot is not None:
        check_plot(plot)
    loaded = load(arguments)
    note_run(ctx, loaded.config.name)
    from dist_trainer.launchers import forkserver

    forkserver.start_for(loaded.config, workers)  # before anything else: it imports torch meanwhile
    from rich.console import Console

    from dist_trainer.tuning.find import find_rate

    console = Console(quiet=as_json, highlight=False)
    found = find_rate(loaded, tried, workers=workers, runs=runs, console=console)
    if plot is not None:
        from dist_trainer.tuning.plot import write_plot

        write_plot(found, plot)
    if as_json:
        print_json(found.as_json())
    else:
        from dist_trainer.tuning.screen import show

        show(found, console)
    exit_with(0 if found.lr is not None else 1)
