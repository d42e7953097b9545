"""One training each, ours or a peer's, in a folder of its own on a terminal: when its steps ended."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from benchmarks.frame import Sample
from benchmarks.peers import MODULES
from benchmarks.peers.protocol import Asked, Stamps
from benchmarks.terminal import run_on_terminal
from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer

RANKS = 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
# --multi_gpu is what makes it start several processes by itself; with Accelerator(cpu=True) they need no GPU
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
ACCELERATE += [f"--num_processes={RANKS}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
DIST_TRAINER = [sys.executable, "-m", "dist_trainer.cli"]
_TIMES = Path("times.json")


class Stamped(Hook):
    """When each step and each evaluation ended, on rank 0, written at the end as the peers do it."""

    def __init__(self) -> None:
        self._stamps = Stamps()

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if trainer.attempt.is_rank_zero:
            self._stamps.tick()

    def on_evaluation(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        if trainer.attempt.is_rank_zero:
            self._stamps.tick()

    def on_end(self, trainer: Trainer, result: Any) -> None:
        if trainer.attempt.is_rank_zero:
            self._stamps.write(_TIMES)


@dataclass(frozen=True)
class Times:
    """In seconds of the machine's monotonic clock."""

    began: float  # the command
    stamps: Sequence[float]

    @property
    def first_step(self) -> Sample:
        """From the command to the end of the first step."""
        return {"first step": self.stamps[0] - self.began}

    def steps(self, *, after: int) -> Sample:
        """How long the steps took that came after so many."""
        steps = [end - begin for begin, end in pairwise(self.stamps[after:])]
        return {"median step": median(steps), "mean step": mean(steps)}

    def evaluations(self) -> Sample:
        """The stamps are begins and ends in turn; the first evaluation warms up."""
        times = [end - begin for begin, end in zip(self.stamps[::2], self.stamps[1::2], strict=True)]
        return {"evaluation": median(times[1:] or times)}


def ours(config: str, *overrides: str) -> Times:
    """`dist-trainer train` of a configuration whose hooks have Stamped."""

    def command(folder: Path) -> list[str]:
        (folder / "run.yaml").write_text(config)
        return [*DIST_TRAINER, "train", "run.yaml", *overrides]

    return _timed(command)


def peer(name: str, asked: Asked, *, launcher: Sequence[str] = TORCHRUN) -> Times:
    """The program of a peer."""
    module = f"benchmarks.peers.{MODULES[name]}"
    return _timed(
        lambda folder: [*launcher, "-m", module, *replace(asked, times=folder / _TIMES).arguments()]
    )


def _timed(command: Callable[[Path], Sequence[str]]) -> Times:
    with _folder() as folder:
        arguments = command(folder)
        began = perf_counter()
        run_on_terminal(arguments, folder)
        return Times(began, Stamps.read(folder / _TIMES))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
