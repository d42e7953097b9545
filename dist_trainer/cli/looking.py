"""The commands that look at configurations, checkpoints and data, and start no training."""

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
    Which,
    exit_with,
    find,
    load,
    print_json,
)
from dist_trainer.errors import ConfigError

_MEANT = "RUN for its newest, RUN@STEP, RUN@best, or the folder of a checkpoint."
app = typer.Typer(**SETTINGS)
config_app = typer.Typer(help="Look at a configuration before anything starts.", **SETTINGS)
checkpoint_app = typer.Typer(help="Look at the checkpoints of runs, and prune them.", **SETTINGS)
data_app = typer.Typer(help="Prepare data.", **SETTINGS)
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data_app, name="data")


@config_app.command("show")
def config_show(arguments: Arguments, as_json: Json = False) -> None:
    """Print the configuration as it would be used, with every default."""
    loaded = load(arguments)
    from dist_trainer.config.load import dump_config

    if as_json:
        print_json(loaded.config.model_dump())
    else:
        print(dump_config(loaded.config), end="")


@config_app.command("check")
def config_check(arguments: Arguments, as_json: Json = False) -> None:
    """Check the configuration and import everything that it names; print errors only."""
    problems: list[str] = []
    try:
        loaded = load(arguments)
        from dist_trainer.config.check import check_in_child

        found = check_in_child(loaded.config)
        if found:
            raise loaded.error(found)
    except ConfigError as error:
        if not as_json:
            raise
        problems = str(error).splitlines()
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    exit_with(ConfigError.exit_code if problems else 0)


@config_app.command("schema")
def config_schema(as_json: Json = True) -> None:
    """Print a JSON schema of the configuration, for editors."""
    from dist_trainer.config.editor_schema import json_schema

    print_json(json_schema())


@checkpoint_app.command("list")
def checkpoint_list(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """List a run's checkpoints, newest first."""
    from dist_trainer.inspect_run import list_checkpoints

    exit_with(list_checkpoints(find(run, runs), as_json=as_json))


@checkpoint_app.command("verify")
def checkpoint_verify(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Read every byte of a run's checkpoints and compare it with what was committed."""
    from dist_trainer.inspect_run import verify_checkpoints

    exit_with(verify_checkpoints(find(run, runs), as_json=as_json))


@checkpoint_app.command("inspect")
def checkpoint_inspect(
    run: Run, checkpoint: Which = "last", runs: Runs = RUNS, as_json: Json = False
) -> None:
    """Show what is in a checkpoint: its files, tensors and metrics."""
    from dist_trainer.inspect_run import inspect_checkpoint

    exit_with(inspect_checkpoint(find(run, runs), checkpoint, as_json=as_json))


@checkpoint_app.command("diff")
def checkpoint_diff(
    a: Annotated[str, typer.Argument(metavar="A", help=_MEANT)],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Say what differs between two checkpoints, after verifying both: exits with 0 if nothing does, else with 1."""
    from dist_trainer.inspect_run import diff_checkpoints

    exit_with(diff_checkpoints(a, b, runs, as_json=as_json))


@checkpoint_app.command("prune")
def checkpoint_prune(
    run: Run,
    keep_last: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Keep the last N, in place of all that the run's section keeps."
        ),
    ] = None,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best", help="Keep the best, and the last, in place of all that the section keeps."
        ),
    ] = False,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Remove those in quarantine too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Remove checkpoints that the run's checkpoint section does not keep, once all that stay were read back whole."""
    found = find(run, runs)
    from dist_trainer.inspect_run import prune_checkpoints

    exit_with(
        prune_checkpoints(
            found,
            keep_last=keep_last,
            keep_best=keep_best,
            quarantined=quarantined,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@data_app.command("pack")
def data_pack(
    source: Annotated[
        str, typer.Argument(help="A data set by import path, or a folder with one folder per class.")
    ],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="The .npz file to write.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Arguments of the data set: root=data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a data set into one file that dist_trainer.data.Arrays reads."""
    from dist_trainer.pack_data import pack_source

    exit_with(pack_source(source, output, arguments or [], as_json=as_json))
