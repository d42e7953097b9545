"""What the commands share: their arguments and options, and an error turned into its message and exit code."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dist_trainer.cli.completion import (
    complete_checkpoint,
    complete_config,
    complete_run,
    complete_split,
)
from dist_trainer.config.command_line import split_arguments
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError, UsageError

if TYPE_CHECKING:
    from dist_trainer.config.load import Loaded
    from dist_trainer.run_folder import RunFolder


_FOR_THE_SHELL_AROUND = ("--install-completion", "--show-completion")


class Commands(TyperGroup):
    """Turns an error meant for the user into its message and exit code, without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a shell's name behind an option that would not look at it."""
        option, *rest = args or [""]
        if option in _FOR_THE_SHELL_AROUND and rest:
            ctx.fail(f"{option} is for the shell that you are in, and takes no name: leave out {rest[0]}")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DistTrainerError as error:
            raise _ended(ctx, str(error), error.exit_code) from error
        except OSError as error:  # a file of a run that is a folder, or not ours to read
            if error.filename is None:
                raise
            message = f"{error.filename}: {(error.strerror or str(error)).lower()}"
            raise _ended(ctx, message, DistTrainerError.exit_code) from error


def _ended(ctx: Any, message: str, exit_code: int) -> typer.Exit:
    message = redact(message)
    print(message, file=sys.stderr)
    if ctx.meta.get(_AS_JSON):
        ended = {"state": "failed", "exit_code": exit_code, "error": message}
        print_json({"run": ctx.meta.get(_RUN), **ended})
    return typer.Exit(exit_code)


_AS_JSON, _RUN = (
    "dist_trainer.as_json",
    "dist_trainer.run",
)  # in the context that a command shares with its group


def note_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[_AS_JSON] = value
    return value


def note_run(ctx: typer.Context, value: str) -> str:
    ctx.meta[_RUN] = value
    return value


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "pretty_exceptions_enable": False}
Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... KEY=VALUE...",
        help="YAML files, merged left to right, then single values.",
        autocompletion=complete_config,
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        help="A run's folder, or its name in the folder of runs.",
        callback=note_run,
        autocompletion=complete_run,
    ),
]
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs live.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.", callback=note_json)
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine; default: the configuration's.")
]
Which = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="last, best or a step.",
        autocompletion=complete_checkpoint,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="The data to use: train, val or test.",
        autocompletion=complete_split,
    ),
]
RUNS = Path("runs")


def load(arguments: list[str]) -> "Loaded":
    """The configuration that the arguments mean."""
    from dist_trainer.config.load import load_config

    return load_config(*split_arguments(arguments))


def find(run: str, runs: Path) -> "RunFolder":
    from dist_trainer.run_folder import find_run

    return find_run(run, runs)


def find_run_of(name: str, runs: Path) -> "RunFolder":
    """The run; of a sweep, which is none, UsageError says which command shows it."""
    from dist_trainer.launchers.results import in_folder
    from dist_trainer.sweep_folder import cell_name, find_sweep

    try:
        return find(name, runs)
    except UsageError:
        sweep = None
        with suppress(UsageError, OSError):
            sweep = find_sweep(name, runs).path
        if sweep is None:
            raise
        shows = f"dist-trainer sweep status {sweep.name}{in_folder(sweep.parent)} shows its cells"
        cell = cell_name(sweep.name, 0)
        raise UsageError(f"{name} is a sweep: {shows}, which are runs such as {cell}") from None


def find_remains(name: str, runs: Path) -> "RunFolder":
    """The run, even where it lost its run.json."""
    from dist_trainer.diagnose.evidence import remains_of

    try:
        return find_run_of(name, runs)
    except UsageError:
        if (left := remains_of(name, runs)) is None:
            raise
        return left


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def exit_with(code: int) -> None:
    if code:
        raise typer.Exit(code)
