"""An epoch of CIFAR-10: batches made of arrays in memory, beside the usual pipeline of one PIL image at a time.

A part of an epoch is trained, and a step's mean time is told: an epoch is so many times as much. Here it is with
train.channels_last, one line of YAML; the peers and the compute alone are as their tutorials have it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compared import HERE, beside_fastest
from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.goals import Figure
from benchmarks.peers.images import BATCH_SIZE, MEAN, STD
from benchmarks.peers.protocol import Asked, Task
from benchmarks.peers.work import LEARNING_RATE
from benchmarks.started import RANKS, ours, peer
from tests import real_data

WARM_UP = 20
STEPS = 120 + WARM_UP
WORKERS = 2  # a rank
FLOOR = "compute alone"
WITH_WORKERS = f"hand-written, {WORKERS} loader processes a rank"
PIPELINES = ["hand-written", "Accelerate", "Lightning", WITH_WORKERS]
QUANTITIES = [Quantity("mean step", "ms", 1000), Quantity("median step", "ms", 1000)]
AUGMENT = "[{target: dist_trainer.data.RandomCrop, padding: 4}, {target: dist_trainer.data.RandomFlip}]"

CONFIG = f"""
name: run
model: {{target: dist_trainer.models.SimpleCNN}}
data:
  train:
    target: dist_trainer.data.Arrays
    split: train
    normalize: {{mean: {MEAN}, std: {STD}}}
  global_batch_size: {BATCH_SIZE * RANKS}
loss: {{target: torch.nn.CrossEntropyLoss}}
optimizer: {{target: torch.optim.SGD, lr: {LEARNING_RATE}}}
hooks: [{{target: benchmarks.started.Stamped}}]
train: {{steps: {STEPS}, eval_every_epochs: null, channels_last: true}}
tracking: {{uri: null}}
launch: {{device: cpu, workers_per_node: {RANKS}, timeout_s: 30}}
"""


def measure(rounds: int) -> list[Row | Figure]:
    """Normalized images, then such that are cropped and flipped at random as well."""
    with cifar10() as path:
        plain = _in_turns("images", path, [], rounds, floor=True)
        augmented = _in_turns("augmented", path, [f"data.train.augment={AUGMENT}"], rounds, floor=False)
    what = f"step of CIFAR-10's epoch, two-conv net, batch {BATCH_SIZE} a rank"
    crops, over = "random crop, flip and normalization", "over the fastest pipeline"
    mean = QUANTITIES[0]
    return [
        beside_fastest(plain, f"{what}, {over}", mean, over=PIPELINES, floor=FLOOR, goal=0.45),
        beside_fastest(plain, f"{what}, over {FLOOR}", mean, over=[FLOOR], floor=FLOOR, goal=1.25),
        beside_fastest(augmented, f"the same with {crops}, {over}", mean, over=PIPELINES, goal=0.45),
        *rows("CIFAR-10", plain, QUANTITIES, baseline="hand-written"),
        *rows(f"CIFAR-10, {crops}", augmented, QUANTITIES, baseline="hand-written"),
    ]


def _in_turns(
    task: Task, path: Path, overrides: list[str], rounds: int, *, floor: bool
) -> dict[str, list[Sample]]:
    usual, resident = Asked(task, STEPS, images=path), Asked("resident", STEPS, images=path)
    with_workers = Asked(task, STEPS, images=path, workers=WORKERS)
    return in_turns(
        {
            HERE: partial(_ours, path, overrides),
            **{name: partial(_of_peer, name, usual) for name in PIPELINES if name != WITH_WORKERS},
            WITH_WORKERS: partial(_of_peer, "hand-written", with_workers),
            **({FLOOR: partial(_of_peer, "hand-written", resident)} if floor else {}),
        },
        rounds,
    )


def _ours(path: Path, overrides: list[str]) -> Sample:
    return ours(CONFIG, f"data.train.path={path}", *overrides).steps(after=WARM_UP)


def _of_peer(name: str, asked: Asked) -> Sample:
    return peer(name, asked).steps(after=WARM_UP)


@contextmanager
def cifar10() -> Iterator[Path]:
    """The real images; random ones of the same shapes, which take as long, where those cannot be fetched."""
    try:
        yield real_data.cifar10()
        return
    except pytest.skip.Exception as missing:
        print(f"random images instead of CIFAR-10: {missing}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield synthetic(Path(folder) / "images.npz", train=50_000, test=10_000)


def synthetic(path: Path, **counts: int) -> Path:
    """Random images of each split, as many as asked for."""
    draw = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for split, count in counts.items():
        arrays[f"{split}_x"] = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        arrays[f"{split}_y"] = draw.integers(0, 10, count)
    np.savez(path, allow_pickle=False, **arrays)
    return path
