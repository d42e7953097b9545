"""Puts exported weights into the run's model built anew, and compares what it gives.

Weights alone need the model's class, so this one check is made with the package.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.checkpoint.weights import load_weights
from dist_trainer.config.load import read_config
from dist_trainer.export.loading import Model, answer, as_model, check, compared, read_job
from dist_trainer.run_folder import RunFolder
from dist_trainer.worker import build_model


def load(job: Mapping[str, Any]) -> Model:
    """The run's model with the weights of the file, read as the format's own readers do."""
    path = compared(job["path"], job["sha256"])
    model = build_model(read_config(RunFolder.open(job["run"]).config_path))
    if job["format"] == "safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = load_weights(path)
    model.load_state_dict(state)
    return as_model(model.eval())


def main(path: str) -> None:
    """The process itself."""
    keep_private()
    kill_me_with_my_parent()
    answer(Path(path), check(read_job(Path(path)), load))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
