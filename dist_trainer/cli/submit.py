"""The command that gives a run to SLURM."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dist_trainer.cli.words import RUNS, SETTINGS, Arguments, Json, Runs, exit_with, load, note_run
from dist_trainer.config.command_line import split_arguments

app = typer.Typer(**SETTINGS)


class _Submit(TyperCommand):
    """Says how what is an option of sbatch is given here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """UsageError where click would only say that there is no such option."""
        own = {"--help", "--version", "-h", "-V", *(name for option in self.params for name in option.opts)}
        for number, text in enumerate(args):
            option, _, value = text.partition("=")
            if option == "--":
                break
            if option.startswith("-") and option not in own:
                _refuse_option_of_sbatch(option, value or _value(args[number + 1 :]))
        return super().parse_args(ctx, args)


def _value(following: list[str]) -> str:
    files, values = split_arguments([text for text in following[:1] if not text.startswith("-")])
    return files[0] if files and not values and not Path(files[0]).suffix else "..."


def _refuse_option_of_sbatch(option: str, value: str) -> None:
    from dist_trainer.config.sbatch_options import NOT_TAKEN, SHORT
    from dist_trainer.errors import UsageError
    from dist_trainer.slurm.cluster_options import known_options

    name = option.removeprefix("--") if option.startswith("--") else SHORT.get(option[1:], "")
    if name in ("nodes", "partition", "time"):
        raise UsageError(f"{option} is sbatch's: give slurm.{name}={value}")
    if name in NOT_TAKEN:
        raise UsageError(f"{option} belongs to the launcher: {NOT_TAKEN[name]}")
    if name in {*SHORT.values(), *known_options("sbatch")}:
        raise UsageError(f"{option} is sbatch's: give slurm.options.{name}={value}")


@app.command(cls=_Submit)
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
