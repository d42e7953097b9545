"""A run with one checkpoint, made without training: an export asks for no more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.state import encode
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.export import loading
from dist_trainer.export.exporting import files_in
from dist_trainer.export.request import COMPARED, FILES, JOB, MADE, Request, make_request
from dist_trainer.run_folder import RunFolder
from dist_trainer.worker import build_model

ROOT = Path(__file__).parents[2]
CONFIG = """\
name: run
model: {{target: tests.export.models.{model}}}
data:
  train: {{target: tests.export.models.Samples, shapes: {shapes}}}
loss: {{target: torch.nn.CrossEntropyLoss}}
optimizer: {{target: torch.optim.SGD, lr: 0.1}}
tracking: {{uri: {uri}}}
"""
WRITE = """
import sys
from pathlib import Path
from dist_trainer.export.writer import write
for work in sys.argv[1:]:
    write(Path(work))
"""
SHAPES = {"TwoInputs": [[5], [2, 3]], "Normed": [[2, 5, 5]]}


def text_of(model: str, *, uri: str = "null") -> str:
    return CONFIG.format(model=model, shapes=SHAPES.get(model, [[4]]), uri=uri)


def make_run(folder: Path, config: str, *values: str, average: Any = None) -> RunFolder:
    """The run `folder`/runs/<name> with its model as it is built, committed at step 3."""
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(config)
    loaded = load_config([folder / "run.yaml"], list(values)).config
    run = RunFolder.create(folder / "runs" / loaded.name, dump_config(loaded), working_folder=ROOT)
    run.new_fence({})
    store = open_store(run, loaded.checkpoint, fence=1)
    files = encode(build_model(loaded).state_dict(), {"average": average})
    store.commit(3, {name: b"".join(parts) for name, parts in files.items()}, {"metrics": {}})
    return run


def made(asked: list[tuple[RunFolder, Path, str, str | None]]) -> list[Path]:
    """The jobs of exports, all written by one process of their own: exporters leave threads behind."""
    for run, work, format, method in asked:
        work.mkdir()
        write_request(run, work, format, method)
    works = [str(work) for _, work, _, _ in asked]
    done = subprocess.run(
        [sys.executable, "-c", WRITE, *works], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [job_of(run, work, format) for run, work, format, _ in asked]


def job_of(run: RunFolder, work: Path, format: str) -> Path:
    name = FILES[format]
    job = json.loads((work / JOB).read_text()) | {"format": format, "run": str(run.path)}
    job |= {"path": str(work / MADE / name), "sha256": files_in(work / MADE)[name]["sha256"]}
    (work / JOB).write_text(json.dumps(job))
    return work / JOB


def write_request(run: RunFolder, work: Path, format: str, method: str | None = None) -> Request:
    request = make_request(run.path, format, method, "last")
    request.write(work)
    return request


def compared_in_one_process(jobs: list[Path]) -> list[list[dict[str, Any]]]:
    """What a fresh process without the package finds of each job."""
    script = str(Path(loading.__file__))
    command = [sys.executable, "-P", script, *map(str, jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=jobs[0].parent)
    assert done.returncode == 0, done.stderr
    return [json.loads((job.parent / COMPARED).read_text())["calls"] for job in jobs]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state
