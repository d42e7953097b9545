"""Run folders as trainings leave them, written by hand: journal, attempts, phases, predictions."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_trainer.report.make import predictions_file
from dist_trainer.report.ranks import PHASES
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal

CONFIG = """\
name: {name}
model: {{target: dist_trainer.models.MLP, sizes: [64, 10]}}
optimizer: {{target: torch.optim.SGD, lr: {lr}}}
checkpoint: {{keep_best: {{metric: val/accuracy, mode: max}}}}
tracking: {{uri: "https://me:hunter22secret@mlflow.example.org"}}
"""
NOW = time.time()


def make_run(folder: Path, name: str = "mine", *, lr: float = 0.1, config: str = CONFIG) -> RunFolder:
    return RunFolder.create(folder / "runs" / name, config.format(name=name, lr=lr), working_folder=folder)


def train(
    run: RunFolder, first: int, last: int, *, attempt: int = 1, ranks: int = 3, level: float = 1.0
) -> None:
    """What rank 0 writes in steps (first, last], every ten of them."""
    heart = Heartbeat(run.heartbeat_path(0), rank=0, attempt=attempt)
    with Journal(run.journal_path(0), attempt=attempt, rank=0) as journal:
        journal.event("started", first_step=first, total_steps=200, world_size=ranks)
        for step in range(first + 10, last + 1, 10):
            heart.beat(step, "train")
            values = {"train/loss": level / step, "learning_rate": 0.1, "samples_per_s": 100.0 + step}
            if ranks > 1:
                values |= {"step_time_s/median": 0.010, "step_time_s/slowest": 0.012 + 0.001 * (step == 50)}
            journal.metrics(step, values)
            if step % 50 == 0:
                journal.metrics(step, {"val/loss": 2 * level / step, "val/accuracy": 1 - level / step})
                journal.event("saved", step=step, checkpoint=f"step-{step:09d}-f{attempt:04d}")
    heart.close()


def start(run: RunFolder, attempt: int, *, ago: float, first_step: int = 0, ranks: int = 3) -> None:
    run.new_fence({"time": NOW - ago})
    line = {"event": "start", "attempt": attempt, "time": NOW - ago, "nodes": ["n1"]}
    run.record({**line, "first_step": first_step, "world_size": ranks})


def end(run: RunFolder, attempt: int, cause: str, *, ago: float, code: int = 0, **more: Any) -> None:
    line = {"event": "end", "attempt": attempt, "time": NOW - ago, "cause": cause}
    run.record({**line, "exit_code": code, **more})


def finished(folder: Path, name: str = "mine", **given: Any) -> RunFolder:
    """A run of one attempt on three ranks, with phases."""
    run = make_run(folder, name, **given)
    start(run, 1, ago=100)
    train(run, 0, 200)
    end(run, 1, "finished", ago=40, last_step=200)
    run.write_status(Status("finished", step=200, results={"test/accuracy": 0.975, "val/accuracy": 0.99}))
    add_phases(run)
    return run


def resumed(folder: Path, name: str = "mine", **given: Any) -> RunFolder:
    """A run that died after step 130, went on from step 100 and finished."""
    run = make_run(folder, name, **given)
    start(run, 1, ago=1000)
    train(run, 0, 130, level=1.0)
    start(run, 2, ago=400, first_step=100)
    train(run, 100, 200, attempt=2, level=3.0)
    end(run, 2, "finished", ago=300, last_step=200)
    run.write_status(Status("finished", step=200, results={"test/loss": 0.01}))
    return run


def add_phases(run: RunFolder, ranks: Sequence[float] = (1.0, 2.0, 1.5)) -> None:
    """Each rank's seconds are its number times those of the phase: 1 ms of data wait a step, 2 ms forward, ..."""
    seconds = [
        {name: 0.01 * place * factor for place, name in enumerate(PHASES, start=1)} for factor in ranks
    ]
    (run.path / "profile").mkdir(exist_ok=True)
    (run.path / "profile" / "phases.json").write_text(json.dumps({"steps": [11, 20], "ranks": seconds}))


def predicted(run: RunFolder, arrays: Mapping[str, NDArray[Any]], split: str = "test", **about: Any) -> Path:
    """A file as `report --predict` writes it."""
    path = predictions_file(run, split)
    path.parent.mkdir(exist_ok=True)
    rows = np.arange(len(next(iter(arrays.values()))))
    said = {"step": 200, "checkpoint": "step-000000200-f0001", "split": split, "classes": None, **about}
    np.savez(path, allow_pickle=False, **{"row": rows, "about": np.array(json.dumps(said)), **arrays})
    return path
