"""Builds a run's model from a verified checkpoint and writes it: python -m dist_trainer.export.writer WORK.

A process of its own, on the CPU, in the run's working folder: the user's modules are imported here and nowhere else.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.checkpoint.manifest import MANIFEST
from dist_trainer.config.load import read_config
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError, ExportError
from dist_trainer.export.card import make_card
from dist_trainer.export.conversion import convert
from dist_trainer.export.example import Call, example_calls
from dist_trainer.export.request import ANSWER, CALLS, JOB, MADE, TOLERANCE, Request, answer_problem
from dist_trainer.inference import load_weights_of
from dist_trainer.run_folder import RunFolder
from dist_trainer.worker import build_datasets, build_model, build_task


def write(work: Path) -> None:
    """Carry out the request in a work folder. Raises ExportError, and what a bad checkpoint or data set raises."""
    request = Request.read(work)
    run = RunFolder.open(request.run)
    config = read_config(run.config_path)
    model, (task, _) = build_model(config), build_task(config)
    store = open_store(run, config.checkpoint)
    checkpoint = choose(store.list(), request.checkpoint, config.checkpoint)
    is_average = load_weights_of(store, checkpoint, model)
    digest = hashlib.sha256(store.storage.read(f"{checkpoint.name}/{MANIFEST}")).hexdigest()
    store.storage.close()
    model.eval().requires_grad_(False)
    datasets = build_datasets(config)
    calls = example_calls(config, model, task, datasets)
    card = make_card(request, config, checkpoint, calls, datasets)
    write_calls(work, calls)
    (work / MADE).mkdir()
    convert(request, model, calls, work / MADE)
    weights = "averaged" if is_average else "trained"
    write_json(work / ANSWER, {"card": {**card, "checkpoint_sha256": digest, "weights": weights}})


def write_calls(work: Path, calls: list[Call]) -> None:
    """The example calls and their outputs as loading.py reads them: tensors in one file, all else in the job."""
    tensors: dict[str, Tensor] = {}
    job: dict[str, Any] = {"tolerance": TOLERANCE, "calls": []}
    for call in calls:
        prefix = f"rows-{call.rows}"
        outputs = {f"{prefix}/outputs/{place}": value for place, value in enumerate(call.outputs)}
        tensors |= {name: value.detach().clone().contiguous() for name, value in outputs.items()}
        packed = {
            "rows": call.rows,
            "args": _pack(call.args, f"{prefix}/args", tensors),
            "keywords": _pack(call.keywords, f"{prefix}/keywords", tensors),
            "named": _pack(call.named, f"{prefix}/named", tensors),
            "outputs": list(outputs),
        }
        job["calls"].append(packed)
    save_file(tensors, work / CALLS)
    write_json(work / JOB, job)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": {key: _pack(item, f"{path}/{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ExportError(
        f"the model is called with a {type(value).__name__} ({path.partition('/')[2]}); what is exported takes "
        "tensors, numbers and text, also in tuples, lists and dicts"
    )


def main(folder: str) -> None:
    """The process itself: what is wrong is left as an answer for who asked."""
    keep_private()
    kill_me_with_my_parent()
    work = Path(folder)
    try:
        write(work)
    except DistTrainerError as error:
        answer_problem(work, redact(str(error)), error.exit_code)
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
