"""What a program is asked for on its command line, and the file in which it tells when things happened."""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

Task = Literal["linear", "images", "augmented", "resident", "evaluate"]
TASKS: tuple[Task, ...] = ("linear", "images", "augmented", "resident", "evaluate")


@dataclass(frozen=True)
class Asked:
    """One program's work. `resident`: the images' training on one batch that stays in memory."""

    task: Task
    steps: int  # or evaluations
    times: Path = Path("times.json")  # where the times go
    images: Path | None = None  # an .npz file as tests.real_data makes it
    workers: int = 0  # loader processes a rank
    mlflow: str | None = None  # a tracking URI: every step's loss goes there

    def arguments(self) -> list[str]:
        """The command line that asks for it."""
        optional = [("--images", self.images), ("--mlflow", self.mlflow)]
        given = [text for name, value in optional if value is not None for text in (name, str(value))]
        needed = [self.task, "--steps", str(self.steps), "--times", str(self.times)]
        return [*needed, "--workers", str(self.workers), *given]


def asked() -> Asked:
    """What this process was started for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--times", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--mlflow")
    return Asked(**vars(parser.parse_args()))


def leave() -> NoReturn:
    """End the process when everything is measured, without Python's own way out.

    On that way a loop by hand aborts once in ten times here (torch 2.14), with its group destroyed too: a thread of
    gloo's drops its last work, which holds an object of Python's, and Python ends a thread that still wants one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Stamps:
    """Moments of one rank, in seconds of the machine's monotonic clock, which all its processes share."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        """Now."""
        self.times.append(time.perf_counter())

    def write(self, path: Path) -> None:
        """All of them, as a JSON list."""
        path.write_text(json.dumps(self.times))

    @staticmethod
    def read(path: Path) -> list[float]:
        """What was written."""
        times: list[float] = json.loads(path.read_text())
        return times
