"""Puts exported weights into the run's model built anew, and compares what it gives.

Weights alone need the model's class, so this one check is made with the package.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.weights import read_saved
from dist_trainer.config.load import read_config
from dist_trainer.config.schema import Config
from dist_trainer.export.example import Call, example_calls
from dist_trainer.export.loading import Array, Model, answer, as_arrays, check, compared, read_job, tensors_in
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.batch import tensors_of
from dist_trainer.worker import build_datasets, build_model, build_task


def load(job: Mapping[str, Any]) -> Model:
    """The run's model with the weights of the file, read as the format's own readers do."""
    path = Path(compared(job["path"], job["sha256"]))
    config = read_config(RunFolder.open(job["run"]).config_path)
    model = build_model(config)
    model.load_state_dict(tensors_in(path) if job["format"] == "safetensors" else read_saved(path))
    model.eval().requires_grad_(False)
    if all("args" in call for call in job["calls"]):
        return lambda call: _outputs(model, call)
    anew = {call.rows: as_arrays(call.outputs) for call in _calls_anew(config, model)}
    return lambda call: anew[call["rows"]]


@torch.no_grad()
def _outputs(model: nn.Module, call: Mapping[str, Any]) -> list[Array]:
    return as_arrays(list(tensors_of(model(*call["args"], **call["keywords"]))))


def _calls_anew(config: Config, model: nn.Module) -> list[Call]:
    """As the writer made them, from the same rows: of what no file holds, such as a library's own batch."""
    (task, _), datasets = build_task(config), build_datasets(config)
    return example_calls(config, model, task, datasets)


def main(path: str) -> None:
    """The process itself."""
    keep_private()
    kill_me_with_my_parent()
    answer(Path(path), check(read_job(Path(path)), load))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
