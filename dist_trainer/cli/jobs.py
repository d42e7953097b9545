"""The commands about runs that SLURM trains: how they stand, what they print, and how to stop them."""

from dataclasses import asdict
from typing import Annotated

import typer

from dist_trainer.cli.completion import complete_run, complete_run_or_sweep
from dist_trainer.cli.words import RUNS, SETTINGS, Json, Run, Runs, exit_with, find_run_of, print_json
from dist_trainer.errors import UsageError

app = typer.Typer(**SETTINGS)


@app.command()
def jobs(
    run: Annotated[
        str | None,
        typer.Argument(
            help="Show this run in detail, with every attempt.",
            autocompletion=complete_run,
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Runs that ended more than a day ago too, and jobs of yours that belong to no run here.",
        ),
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Show how runs and their jobs stand."""
    from rich.console import Console

    from dist_trainer.jobs.listing import Queue, list_jobs, stand_in_queue

    console = Console()
    if run is None:
        from dist_trainer.jobs.table import show_jobs

        listing = list_jobs(runs, every=every)
        print_json(listing.as_json()) if as_json else show_jobs(listing, console, where=str(runs))
        return
    from dist_trainer.jobs.detail import detail_as_json, show_detail

    found, queue = find_run_of(run, runs), Queue()
    row = stand_in_queue(found, queue)
    if as_json:
        print_json({**detail_as_json(found, row), "problem": queue.problem or None})
    else:
        show_detail(found, row, console, problem=queue.problem)


@app.command()
def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")
    ] = False,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="A rank's number, or agent for what the nodes' agents print: the progress and the result. "
            "Default: agent for a run that was submitted, else 0.",
        ),
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="An earlier attempt; default: the newest.")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Print what a run has printed: its progress, or the words of a rank."""
    from dist_trainer.jobs.log_files import rank_of
    from dist_trainer.jobs.logs import show_logs

    found = find_run_of(run, runs)
    chosen = rank_of(found, rank, attempt)
    exit_with(show_logs(found, rank=chosen, attempt=attempt, follow=follow))


@app.command()
def cancel(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs by folder or name, or sweeps by name.",
            autocompletion=complete_run_or_sweep,
        ),
    ],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Stop runs that SLURM trains or is to train; what trains saves first."""
    from dist_trainer.sweeps.cancel import cancel_all, named

    targets, unknown = [], []
    for name in names:
        try:
            targets.append(named(name, runs))
        except UsageError as error:  # the others are cancelled all the same
            unknown.append(str(error))
    answers = cancel_all(targets)
    if as_json:
        print_json({"runs": [asdict(answer) for answer in answers]})
    for message, code in {answer.message: answer.exit_code for answer in answers}.items():
        if not as_json or code:
            typer.echo(message, err=bool(code))
    for message in unknown:
        typer.echo(message, err=True)
    exit_with(UsageError.exit_code if unknown else max((answer.exit_code for answer in answers), default=0))
