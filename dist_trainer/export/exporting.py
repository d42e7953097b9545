"""The `export` command below the command line: one process writes, another one compares, and only then files appear.

Everything is made in a folder beside the one it is for, and moved into it at the end: a failure leaves nothing.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters.files import write_json
from dist_trainer.config.load import read_sections
from dist_trainer.config.redact import redact
from dist_trainer.errors import ExportError, NoUsableCheckpoint, UsageError
from dist_trainer.export.place import put, work_folder
from dist_trainer.export.request import (
    BATCH_SIZES,
    COMPARED,
    FILES,
    JOB,
    MADE,
    TOLERANCE,
    WEIGHTS_ALONE,
    Request,
    read_answer,
)
from dist_trainer.launchers.signals import ended_once_cleaned
from dist_trainer.run_folder import RunFolder

_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LAST_WORDS = 12  # lines of a process that failed
_MEASURE = "max|got - model's| / max|model's| of each output, for rows of the run's own data"


@dataclass(frozen=True)
class Exported:
    """Where the files are, what export.json says of them, and which of an earlier export's went from there."""

    folder: Path
    card: dict[str, Any]
    removed: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The model's files."""
        return [self.folder / name for name in self.card["files"]]


def export(run: RunFolder, request: Request, output: Path | None) -> Exported:
    """Write the model, compare it in a fresh process, and put it into `output` or the run's export folder.

    Raises UsageError before anything starts, ExportError where torch cannot do it or the outputs differ, and what a
    bad checkpoint or data set raises.
    """
    check_request(run, request)
    folder = output.absolute() if output else run.path / "export" / request.format
    with ended_once_cleaned(), work_folder(run, folder) as work:
        request.write(work)
        card = _written(run, work)
        card["files"] = files_in(work / MADE)
        card["checked"] = _checked(run, request, work, card)
        removed = put(run, work / MADE, card, folder)
    return Exported(folder, card, removed)


def check_request(run: RunFolder, request: Request) -> None:
    """UsageError for what cannot be exported at all, with the remedy."""
    if "model" not in read_sections(run.config_path):
        raise UsageError(
            f"run {run.path.name} was begun from Python, so its model is in no configuration; call fit() of the same "
            "Trainer again, which gives its weights back at once, and export the model there with torch"
        )
    missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
    if request.format == "onnx" and missing:
        raise UsageError(
            f"--format onnx needs {', '.join(missing)}: pip install 'dist-trainer[onnx]', or pip install "
            f"{' '.join(_ONNX)}"
        )
    if not run.info().working_folder.is_dir():
        raise UsageError(
            f"{run.info().working_folder}: the folder that run {run.path.name} was begun in is gone, and with it the "
            "modules and data that its configuration names; bring it back"
        )


def _written(run: RunFolder, work: Path) -> dict[str, Any]:
    """What the writer says of the files that it made; raises what it raised."""
    command = ["-m", "dist_trainer.export.writer", str(work)]
    words = _run(command, folder=run.info().working_folder)
    try:
        answer = read_answer(work)
    except FileNotFoundError:
        raise ExportError(f"the process that exports ended without a word:\n{_last_words(words)}") from None
    if "problem" in answer:
        kinds = {kind.exit_code: kind for kind in (ExportError, UsageError, NoUsableCheckpoint)}
        raise kinds.get(answer["exit_code"], ExportError)(answer["problem"])
    card: dict[str, Any] = answer["card"]
    return card


def _checked(run: RunFolder, request: Request, work: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Load the file in a fresh process and compare its outputs. ExportError where they are not the model's."""
    name = FILES[request.format]
    job = json.loads((work / JOB).read_text())
    job |= {"format": request.format, "run": str(run.path), "path": str(work / MADE / name)}
    write_json(work / JOB, {**job, "sha256": card["files"][name]["sha256"]})
    if request.format in WEIGHTS_ALONE:
        command = ["-m", "dist_trainer.export.reloading", str(work / JOB)]
        words = _run(command, folder=run.info().working_folder)
    else:
        script = Path(__file__).with_name("loading.py")
        words = _run(["-P", str(script), str(work / JOB)], folder=work)
    found = _results(request, work, words)
    for call in found:
        if call["problem"]:
            raise ExportError(
                f"exported as {request.words}, the model does not give the same for a batch of {call['rows']}: "
                f"{call['problem']}, and {TOLERANCE:g} of that is accepted; {_nothing_kept(request)}"
            )
    return {
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
        "largest_difference": max(call["difference"] for call in found),
        "what": _MEASURE,
        "without_dist_trainer": request.format not in WEIGHTS_ALONE,
    }


def _results(request: Request, work: Path, output: str) -> list[dict[str, Any]]:
    """How each call compares; ExportError with what was said where there is nothing to compare."""
    try:
        found = json.loads((work / COMPARED).read_text())
    except FileNotFoundError:
        found = {"problem": f"ends the process that loads it without a word:\n{_last_words(output)}"}
    if "problem" in found:
        raise ExportError(
            f"exported as {request.words}, the model {redact(found['problem'])}; {_nothing_kept(request)}"
        )
    return list(found["calls"])


def _last_words(output: str) -> str:
    return redact("\n".join(output.strip().splitlines()[-_LAST_WORDS:]) or "no word")


def _nothing_kept(request: Request) -> str:
    remedy = "" if request.format in WEIGHTS_ALONE else ". --format safetensors keeps the weights exactly"
    return f"nothing was kept{remedy}"


def _run(arguments: Sequence[str], *, folder: Path) -> str:
    """What Python prints with these arguments, to its end, which comes with ours."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout


def files_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file."""
    return {path.name: _record(path) for path in sorted(folder.iterdir())}


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
