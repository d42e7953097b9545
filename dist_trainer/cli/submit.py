"""The command that gives a run to SLURM."""

from typing import Annotated

import typer

from dist_trainer.cli.words import RUNS, SETTINGS, Arguments, Json, Runs, exit_with, load, note_run

app = typer.Typer(**SETTINGS)


@app.command()
def submit(
    ctx: typer.Context,
    arguments: Arguments,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines; instead of slurm.nodes.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and send nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the run's end, and end with its exit code.")
    ] = False,
    no_snapshot: Annotated[
        bool, typer.Option("--no-snapshot", help="Run the code as it is when the job starts, without a copy.")
    ] = False,
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
    """Give a run to SLURM, or give it back to go on: everything is checked first, then the code is copied."""
    loaded = load([*arguments, *([f"slurm.nodes={nodes}"] if nodes else [])])
    note_run(ctx, loaded.config.name)
    from dist_trainer.slurm.submit import Wishes
    from dist_trainer.slurm.submit import submit as start

    wishes = Wishes(
        runs=runs,
        fresh=fresh,
        allow_change=allow_change or [],
        snapshot=not no_snapshot,
        dry_run=dry_run,
        wait=wait,
        as_json=as_json,
    )
    exit_with(start(loaded, wishes))
