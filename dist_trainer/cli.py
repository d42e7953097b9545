"""The commands: argv to a checked configuration or a run folder, and on to what does the work.

Everything heavy is imported inside the command that needs it: help, `config show` and `config schema` import no
torch, and their answer is there at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dist_trainer.errors import ConfigError, DistTrainerError, UsageError

if TYPE_CHECKING:
    from dist_trainer.config.load import Loaded
    from dist_trainer.run_folder import RunFolder


class Commands(TyperGroup):
    """Turns an error meant for the user into its message and exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DistTrainerError as error:
            print(error, file=sys.stderr)
            if ctx.meta.get(_AS_JSON):
                ended = {"state": "failed", "exit_code": error.exit_code, "error": str(error)}
                _print_json({"run": ctx.meta.get(_RUN), **ended})
            raise typer.Exit(error.exit_code) from error


_AS_JSON, _RUN = (
    "dist_trainer.as_json",
    "dist_trainer.run",
)  # in the context that a command shares with its group


def _note_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[_AS_JSON] = value
    return value


def _note_run(ctx: typer.Context, value: str) -> str:
    ctx.meta[_RUN] = value
    return value


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "pretty_exceptions_enable": False}
app = typer.Typer(cls=Commands, help="Train PyTorch models over many processes, and finish.", **SETTINGS)
config_app = typer.Typer(help="Look at a configuration before anything starts.", **SETTINGS)
checkpoint_app = typer.Typer(help="Look at the checkpoints of a run.", **SETTINGS)
data_app = typer.Typer(help="Prepare data.", **SETTINGS)
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data_app, name="data")

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... KEY=VALUE...", help="YAML files, merged left to right, then single values."
    ),
]
Run = Annotated[
    str, typer.Argument(help="A run's folder, or its name in the folder of runs.", callback=_note_run)
]
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs live.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.", callback=_note_json)
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine; default: the configuration's.")
]
Which = Annotated[str, typer.Option("--checkpoint", help="last, best or a step.")]
Split = Annotated[str, typer.Option(help="The data to use: train, val or test.")]
RUNS = Path("runs")


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
    loaded = _load(arguments)
    _note_run(ctx, loaded.config.name)
    from dist_trainer.launchers.train import train as start

    _exit_with(
        start(
            loaded, runs=runs, workers=workers, fresh=fresh, allow_change=allow_change or [], as_json=as_json
        )
    )


@app.command()
def prepare(ctx: typer.Context, arguments: Arguments, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Make a run's folder without training it, and print its path: torchrun -m dist_trainer.worker takes that."""
    loaded = _load(arguments)
    _note_run(ctx, loaded.config.name)
    from dist_trainer.launchers.prepare import prepare as make

    run = make(loaded, runs=runs)
    if as_json:
        _print_json({"run": loaded.config.name, "folder": str(run.path)})
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
    found = _find(run, runs)
    from dist_trainer.launchers.infer import evaluate as start

    _exit_with(start(found, split=split, checkpoint=checkpoint, workers=workers, as_json=as_json))


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
    found = _find(run, runs)
    from dist_trainer.launchers.infer import predict as start

    _exit_with(
        start(found, output=output, split=split, checkpoint=checkpoint, workers=workers, as_json=as_json)
    )


@app.command()
def sync(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Carry to MLflow what it has not got yet."""
    found = _find(run, runs)
    from dist_trainer.tracking.mlflow_sync import sync as carry

    report = carry(found)
    if as_json:
        _print_json(vars(report))
    else:
        print(f"{report.sent} metric points sent, {report.left} left; see {report.url}")
    if report.problem:
        print(report.problem, file=sys.stderr)
    _exit_with(1 if report.left or report.problem else 0)


@config_app.command("show")
def config_show(arguments: Arguments, as_json: Json = False) -> None:
    """Print the configuration as it would be used, with every default."""
    loaded = _load(arguments)
    from dist_trainer.config.load import dump_config

    if as_json:
        _print_json(loaded.config.model_dump())
    else:
        print(dump_config(loaded.config), end="")


@config_app.command("check")
def config_check(arguments: Arguments, as_json: Json = False) -> None:
    """Check the configuration and import everything that it names; print errors only."""
    problems: list[str] = []
    try:
        loaded = _load(arguments)
        from dist_trainer.config.check import check_in_child

        found = check_in_child(loaded.config)
        if found:
            raise loaded.error(found)
    except ConfigError as error:
        if not as_json:
            raise
        problems = str(error).splitlines()
    if as_json:
        _print_json({"ok": not problems, "problems": problems})
    _exit_with(ConfigError.exit_code if problems else 0)


@config_app.command("schema")
def config_schema(as_json: Json = True) -> None:
    """Print a JSON schema of the configuration, for editors."""
    from dist_trainer.config.editor_schema import json_schema

    _print_json(json_schema())


@checkpoint_app.command("list")
def checkpoint_list(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """List a run's checkpoints, newest first."""
    from dist_trainer.inspect_run import list_checkpoints

    _exit_with(list_checkpoints(_find(run, runs), as_json=as_json))


@checkpoint_app.command("verify")
def checkpoint_verify(run: Run, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Read every byte of a run's checkpoints and compare it with what was committed."""
    from dist_trainer.inspect_run import verify_checkpoints

    _exit_with(verify_checkpoints(_find(run, runs), as_json=as_json))


@checkpoint_app.command("inspect")
def checkpoint_inspect(
    run: Run, checkpoint: Which = "last", runs: Runs = RUNS, as_json: Json = False
) -> None:
    """Show what is in a checkpoint: its files, tensors and metrics."""
    from dist_trainer.inspect_run import inspect_checkpoint

    _exit_with(inspect_checkpoint(_find(run, runs), checkpoint, as_json=as_json))


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

    _exit_with(pack_source(source, output, arguments or [], as_json=as_json))


def _load(arguments: list[str]) -> "Loaded":
    """What has an equals sign and is no file is a single value."""
    from dist_trainer.config.load import load_config

    values = [text for text in arguments if "=" in text and not _is_there(text)]
    return load_config([text for text in arguments if text not in values], values)


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a file's name
        return False


def _find(run: str, runs: Path) -> "RunFolder":
    from dist_trainer.run_folder import find_run

    return find_run(run, runs)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, default=str))


def _exit_with(code: int) -> None:
    if code:
        raise typer.Exit(code)


def main() -> None:
    """The console script."""
    app(prog_name="dist-trainer")


if __name__ == "__main__":
    main()
