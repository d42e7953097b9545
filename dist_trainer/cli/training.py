"""The commands that train, use and track a run on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dist_trainer.cli.words import (
    RUNS,
    SETTINGS,
    Arguments,
    Json,
    Run,
    Runs,
    Split,
    Which,
    Workers,
    exit_with,
    find,
    load,
    note_run,
    print_json,
)
from dist_trainer.errors import UsageError

app = typer.Typer(**SETTINGS)


@app.command()
def train(
    ctx: typer.Context,
    arguments: Arguments,
    workers: Workers = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an older run of this name aside first.")
    ] = False,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Go on although this key has changed; may be repeated."),
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Train, or go on with a run that did not finish."""
    loaded = load(arguments)
    note_run(ctx, loaded.config.name)
    from dist_trainer.launchers import forkserver

    forkserver.start_for(loaded.config, workers)  # before anything else: it imports torch meanwhile
    from dist_trainer.launchers.train import train as start

    exit_with(
        start(
            loaded, runs=runs, workers=workers, fresh=fresh, allow_change=allow_change or [], as_json=as_json
        )
    )


@app.command()
def prepare(ctx: typer.Context, arguments: Arguments, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Make a run's folder without training it, and print its path: torchrun -m dist_trainer.worker takes that."""
    loaded = load(arguments)
    note_run(ctx, loaded.config.name)
    from dist_trainer.launchers.prepare import prepare as make

    run = make(loaded, runs=runs)
    if as_json:
        print_json({"run": loaded.config.name, "folder": str(run.path)})
    else:
        print(run.path)


@app.command()
def evaluate(
    run: Run,
    split: Split = "test",
    checkpoint: Which = "last",
    workers: Workers = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint of a run: every sample once."""
    found = find(run, runs)
    from dist_trainer.launchers.infer import evaluate as start

    exit_with(start(found, split=split, checkpoint=checkpoint, workers=workers, as_json=as_json))


@app.command()
def predict(
    run: Run,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where predictions go: .npz or .csv.")],
    split: Split = "test",
    checkpoint: Which = "last",
    workers: Workers = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write a prediction for every sample, in the order of the data set."""
    if output.suffix not in (".npz", ".csv"):
        raise UsageError(f"--output must end in .npz or .csv, got {str(output)!r}")
    found = find(run, runs)
    from dist_trainer.launchers.infer import predict as start

    exit_with(
        start(found, output=output, split=split, checkpoint=checkpoint, workers=workers, as_json=as_json)
    )


@app.command()
def sync(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Carry to MLflow what it has not got yet."""
    found = find(run, runs)
    from dist_trainer.tracking.mlflow_sync import sync as carry

    report = carry(found)
    if as_json:
        print_json(vars(report))
    else:
        print(f"{report.sent} metric points sent, {report.left} left; see {report.url}")
    if report.problem:
        print(report.problem, file=sys.stderr)
    exit_with(1 if report.left or report.problem else 0)
