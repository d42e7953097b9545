"""The command that hands a run's model to others: a file that they load with their own means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_trainer.cli.words import RUNS, SETTINGS, Json, Run, Runs, Which, find, print_json

if TYPE_CHECKING:
    from dist_trainer.export.exporting import Exported
    from dist_trainer.tracking.mlflow_registry import Registered

app = typer.Typer(**SETTINGS)

Format = Annotated[
    str, typer.Option("--format", help="state_dict, safetensors, torch-export, onnx or torchscript.")
]
Method = Annotated[
    str | None, typer.Option(help="How TorchScript is made: trace (an example's way) or script (the code).")
]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where it goes; default: export/FORMAT in the run's folder."),
]
Register = Annotated[
    str | None, typer.Option(metavar="NAME", help="Put it into MLflow's model registry under this name.")
]


@app.command()
def export(
    run: Run,
    format: Format,
    method: Method = None,
    checkpoint: Which = "last",
    output: Output = None,
    register: Register = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write a run's model as a file for others, and prove that it gives the same outputs."""
    found = find(run, runs)
    from dist_trainer.export.exporting import export as write
    from dist_trainer.export.request import make_request

    request = make_request(found.path, format, method, checkpoint)
    if register is None:
        _show(write(found, request, output), as_json=as_json)
        return
    from dist_trainer.tracking.mlflow_registry import check_registry
    from dist_trainer.tracking.mlflow_registry import register as put

    check_registry(found)
    exported = write(found, request, output)
    if not as_json:
        _show(exported)
    _show(exported, put(found, exported.folder, register), as_json=as_json)


def _show(exported: "Exported", registered: "Registered | None" = None, *, as_json: bool = False) -> None:
    from dist_trainer.export.screen import as_document, words

    if as_json:
        print_json(as_document(exported, registered))
    else:
        print(registered.words if registered else words(exported))
