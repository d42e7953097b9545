"""The `evaluate` and `predict` commands below the command line: workers on a scratch folder beside the run."""

import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_trainer.adapters.files import make_private_folder, new_private_file
from dist_trainer.adapters.interpreter import importing
from dist_trainer.config.load import dump_config, read_config, read_sections
from dist_trainer.config.schema import Config
from dist_trainer.errors import FINISHED, UsageError
from dist_trainer.inference_request import RESULT, Request
from dist_trainer.launchers import forkserver
from dist_trainer.launchers.results import show_json_error
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.launchers.workers import count_workers
from dist_trainer.run_folder import RunFolder

ENTRY = "dist_trainer.inference:main"
SHOWN = 24  # samples on a page


def evaluate(run: RunFolder, *, split: str, checkpoint: str, workers: int | None, as_json: bool) -> int:
    """Measure a checkpoint on a split; prints a table, or one JSON object. The command's exit code."""
    result = _infer(run, Request(str(run.path), split, checkpoint), workers, as_json)
    if isinstance(result, int):
        return result
    if as_json:
        print(json.dumps({"run": run.path.name, "folder": str(run.path), "split": split, **result}))
        return FINISHED
    table = Table(title=f"{run.path.name}: step {result['step']}", title_justify="left", show_header=False)
    for key, value in result["results"].items():
        table.add_row(key, f"{value:.4g}")
    Console(highlight=False).print(table)
    return FINISHED


def predict(
    run: RunFolder, *, output: Path, split: str, checkpoint: str, workers: int | None, as_json: bool
) -> int:
    """Write a prediction for each sample of a split, in its order. The command's exit code."""
    request = Request(str(run.path), split, checkpoint, str(output.absolute()))
    result = _infer(run, request, workers, as_json)
    if isinstance(result, int):
        return result
    rows = int(result["results"]["rows"])
    if as_json:
        about = {"run": run.path.name, "split": split, "step": result["step"]}
        print(json.dumps({**about, "output": str(output), "rows": rows}))
    else:
        print(f"{output}: {rows} predictions for data.{split}, by the checkpoint of step {result['step']}")
    return FINISHED


def predict_to_show(
    run: RunFolder, output: Path, *, split: str, checkpoint: str, workers: int | None, as_json: bool
) -> int:
    """Write predictions with the truth and `SHOWN` samples, for a page: an .npz of ours. The exit code."""
    make_private_folder(output.parent)
    # a name of its own: two of these may be at work on one run
    partial = new_private_file(output.with_name(f".{output.stem}-{secrets.token_hex(4)}.npz"))
    try:
        request = Request(str(run.path), split, checkpoint, str(partial), samples=SHOWN)
        result = _infer(run, request, workers, as_json)
        if isinstance(result, int):
            return result
        partial.replace(output)
        return FINISHED
    finally:
        partial.unlink(missing_ok=True)


def _infer(run: RunFolder, request: Request, workers: int | None, as_json: bool) -> dict[str, Any] | int:
    """What the workers found, or the exit code of what went wrong."""
    config = _config(run)
    config = config.model_copy(update={"launch": config.launch.model_copy(update={"max_restarts": 0})})
    with (
        StopRequests().listening() as requests,
        tempfile.TemporaryDirectory(prefix="infer-", dir=run.path) as parent,
    ):
        forkserver.start_for(config, workers)
        with importing():  # torch, while the forkserver does
            from dist_trainer.launchers import agent

        # a run folder of its own: fences, logs and errors of these workers are not the run's
        scratch = RunFolder.create(
            Path(parent) / "scratch", dump_config(config), working_folder=run.info().working_folder
        )
        request.write(scratch.path)
        outcome = agent.launch(
            scratch,
            config,
            workers=workers or count_workers(config, agent.visible_gpus()),
            entry=ENTRY,
            requests=requests,
            report=lambda message: None,
        )
        if outcome.exit_code == FINISHED:
            found: dict[str, Any] = json.loads((scratch.path / RESULT).read_text())
            return found
        print(outcome.message, file=sys.stderr)
        if as_json:
            show_json_error(run.path.name, outcome.state, outcome.exit_code, outcome.message)
        if outcome.failure is not None and outcome.failure.exit_code == 1:
            print(_keep_log(run, outcome.failure.log), file=sys.stderr)
        return outcome.exit_code


def _config(run: RunFolder) -> Config:
    if "model" not in read_sections(run.config_path):
        raise UsageError(
            f"run {run.path.name} was begun from Python, so its model and data are in no configuration; call "
            "fit() of the same Trainer again: a finished run comes back at once, with its weights and metrics"
        )
    return read_config(run.config_path)


def _keep_log(run: RunFolder, log: Path) -> str:
    """The scratch folder goes; the failed rank's words stay."""
    kept = new_private_file(run.path / "logs" / "inference-failed.log")
    shutil.copyfile(log, kept)
    return f"its log: {kept}"
