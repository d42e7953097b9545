"""The command that shows runs: one page of curves, time, attempts and predictions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_trainer.cli.words import (
    RUNS,
    SETTINGS,
    Json,
    Runs,
    Which,
    Workers,
    exit_with,
    find_remains,
    print_json,
)
from dist_trainer.errors import UsageError

if TYPE_CHECKING:
    from dist_trainer.run_folder import RunFolder

app = typer.Typer(**SETTINGS)
_SPLITS = ("train", "val", "test")

Named = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="Runs, by folder or name; several are laid over each other."),
]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where the page goes; default: report/ in the run's folder."),
]
Predict = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT", help="First predict this split (val, test or train), to show what it gave."
    ),
]


@app.command()
def report(
    run: Named,
    output: Output = None,
    predict: Predict = None,
    checkpoint: Which = "last",
    workers: Workers = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write one page about a run, or several: it opens in any browser, and needs no network."""
    if predict is not None and predict not in _SPLITS:
        raise UsageError(f"--predict must be one of {', '.join(_SPLITS)}, got {predict!r}")
    found = [find_remains(name, runs) for name in run]
    from dist_trainer.report import make, place

    make.check(found)
    folder = output.absolute() if output else place.default_folder(found)
    place.check_place([folder / place.PAGE])  # before predictions are made for it
    for each in found if predict is not None else ():
        exit_with(_predict(each, predict, checkpoint, workers, as_json=as_json))
    written = make.make(found, folder)
    print_json(written.as_json()) if as_json else print(written.sentence)


def _predict(
    run: "RunFolder", split: str | None, checkpoint: str, workers: int | None, *, as_json: bool
) -> int:
    from dist_trainer.launchers.infer import predict_to_show
    from dist_trainer.report.make import predictions_file

    assert split is not None
    file = predictions_file(run, split)
    return predict_to_show(run, file, split=split, checkpoint=checkpoint, workers=workers, as_json=as_json)
