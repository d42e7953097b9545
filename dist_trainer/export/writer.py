"""Builds a run's model from a verified checkpoint and writes it: python -m dist_trainer.export.writer WORK.

A process of its own, on the CPU, in the run's working folder: the user's modules are imported here and nowhere else.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_trainer.adapters.files import write_json
from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.checkpoint.manifest import MANIFEST
from dist_trainer.checkpoint.tensors import to_buffers
from dist_trainer.config.load import read_config
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError, ExportError
from dist_trainer.export.card import make_card
from dist_trainer.export.conversion import convert
from dist_trainer.export.example import Call, example_calls
from dist_trainer.export.request import (
    ANSWER,
    CALLS,
    JOB,
    MADE,
    TOLERANCE,
    WEIGHTS_ALONE,
    Request,
    answer_problem,
)
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
    write_calls(work, calls, alone=request.format in WEIGHTS_ALONE)
    (work / MADE).mkdir()
    convert(request, model, calls, work / MADE)
    weights = "averaged" if is_average else "trained"
    write_json(work / ANSWER, {"card": {**card, "checkpoint_sha256": digest, "weights": weights}})


def write_calls(work: Path, calls: list[Call], *, alone: bool) -> None:
    """The example calls and their outputs as loading.py reads them: tensors in one file, all else in the job.

    Where weights `alone` are compared, reloading.py can make a call anew from the run's data: one whose arguments no
    file holds as they are is left out. Raises ExportError for such a call of a program.
    """
    tensors: dict[str, Tensor] = {}
    job: dict[str, Any] = {"tolerance": TOLERANCE, "calls": []}
    for call in calls:
        prefix = f"rows-{call.rows}"
        outputs = {f"{prefix}/outputs/{place}": value for place, value in enumerate(call.outputs)}
        tensors |= {name: _plain(value) for name, value in outputs.items()}
        packed: dict[str, Any] = {"rows": call.rows, "outputs": list(outputs)}
        if not alone or (_is_kept(call.args) and _is_kept(call.keywords)):
            given = {"named": call.named, "args": call.args, "keywords": call.keywords}
            packed |= {name: _pack(value, f"{prefix}/{name}", tensors) for name, value in given.items()}
        job["calls"].append(packed)
    with (work / CALLS).open("wb") as file:
        file.writelines(to_buffers(tensors))
    write_json(work / JOB, job)


def _plain(tensor: Tensor) -> Tensor:
    """Memory of its own: a tied one would be left out of the file."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).as_subclass(Tensor)


def _is_kept(value: Any) -> bool:
    """Whether it comes out of the job as it went in."""
    if type(value) is dict:
        return all(type(key) is str and _is_kept(item) for key, item in value.items())
    if type(value) in (tuple, list):
        return all(map(_is_kept, value))
    return value is None or type(value) in (Tensor, torch.nn.Parameter, bool, int, float, str)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = _plain(value)
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": {key: _pack(item, f"{path}/{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ExportError(
        f"the model is called with a {type(value).__name__} ({path.split('/', 2)[2]}); a file keeps "
        "tensors, numbers and text, also in tuples, lists and dicts; --format state_dict keeps any model's weights"
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
