"""What benchmarks/gpu.py trains: a net, images as bytes in an .npz file, and the Trainer's run of them."""

import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import SGD

from benchmarks.frame import Sample
from dist_trainer.data import Arrays, RandomCrop, RandomFlip
from dist_trainer.data.augment import Augmentation
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import iterate_journal
from dist_trainer.training.hooks import Hook
from dist_trainer.training.memory_format import to_channels_last
from dist_trainer.training.trainer import Trainer

Mode = Literal["eager", "compile", "CUDA graphs"]
MODES: tuple[Mode, ...] = ("eager", "compile", "CUDA graphs")
CLASSES, PADDING = 10, 4
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR_SHAPE = (3, 32, 32)
_LOGGED_EVERY = 10  # steps, here and by hand: a step's loss is asked of the device
_SMALL_COPY_BYTES = 1 << 16


@dataclass(frozen=True)
class Size:
    """How much is trained. Steps up to `warm` are not counted."""

    net: Literal["ResNet-50", "tiny net"]
    batch: int
    steps: int
    warm: int
    rows: int
    shape: tuple[int, int, int]  # of synthetic images
    cifar_batch: int
    state_mb: int


FULL = Size("ResNet-50", 256, 120, 40, 4096, (3, 224, 224), 512, 1000)
TINY = Size("tiny net", 4, 24, 10, 32, CIFAR_SHAPE, 4, 1)


@dataclass(frozen=True)
class Work:
    """One training, the same here and by hand."""

    size: Size
    file: Path
    batch: int
    augmented: bool
    device: torch.device
    mode: Mode = "eager"
    workers: int = 0  # loader processes; by hand a thread reads ahead

    def model(self) -> nn.Module:
        """With its first weights, where it trains, and compiled where that is its mode."""
        torch.manual_seed(1)
        model = _net(self.size).to(self.device)
        to_channels_last(model)
        if self.mode != "eager":
            model.compile(mode="reduce-overhead" if self.mode == "CUDA graphs" else None)
        return model

    def optimizer(self, model: nn.Module) -> SGD:
        """The usual one for such nets."""
        return SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-5)


def _net(size: Size) -> nn.Module:
    if size.net == "ResNet-50":
        from torchvision.models import resnet50

        net: nn.Module = resnet50(num_classes=CLASSES)
        return net
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def write_images(path: Path, rows: int, shape: Sequence[int]) -> Path:
    """Random images as an .npz file, as `dist-trainer data pack` makes them of real ones."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (rows, *shape), dtype=np.uint8)
    np.savez(path, train_x=images, train_y=random.integers(0, CLASSES, rows))
    return path


class Rate(Hook):
    """Images a second after the warm-up. What the device still has to do counts, at both ends."""

    def __init__(self, work: Work) -> None:
        self._work, self._began, self.images_per_s = work, 0.0, 0.0

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        size = self._work.size
        if step == size.warm:
            settle(self._work.device)
            self._began = time.perf_counter()
        elif step == size.steps:
            settle(self._work.device)
            passed = time.perf_counter() - self._began
            self.images_per_s = (size.steps - size.warm) * self._work.batch / passed


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def here(work: Work) -> Sample:
    """Images a second by the Trainer, and the share of its steps' time that was spent waiting for data."""
    rate = Rate(work)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        run = _train(work, Path(folder), rate)
        return {"images": rate.images_per_s, "waiting": _waiting_share(run, after=work.size.warm)}


def copies_hidden(work: Work) -> float | None:
    """The share of the copies to the device that ran beside its computing; None where there are none, on a CPU."""
    size = work.size
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        run = _train(work, Path(folder), Rate(work), {"train.profile": {"steps": [size.warm, size.warm + 5]}})
        trace = json.loads((run.path / "profile" / "rank-0.json").read_text())
    return hidden_share(trace["traceEvents"])


def hidden_share(events: Sequence[dict[str, Any]]) -> float | None:
    """Of a trace's large copies to the device, the share of time in which a kernel ran too."""
    kernels = _joined(_span(event) for event in events if event.get("cat") == "kernel")
    copies = _joined(_span(event) for event in events if _is_large_copy(event))
    total = sum(end - begin for begin, end in copies)
    together = sum(
        max(0.0, min(end, stop) - max(begin, start)) for begin, end in copies for start, stop in kernels
    )
    return together / total if total else None


def _is_large_copy(event: dict[str, Any]) -> bool:
    is_copy = event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]
    return is_copy and event["args"].get("bytes", 0) >= _SMALL_COPY_BYTES


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _joined(spans: Any) -> list[tuple[float, float]]:
    """The same time as spans that do not overlap."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _train(work: Work, folder: Path, hook: Hook, more: dict[str, Any] | None = None) -> RunFolder:
    augment: list[Augmentation] = [RandomCrop(PADDING), RandomFlip()] if work.augmented else []
    data = Arrays(work.file, split="train", normalize=NORMALIZE, augment=augment)
    model = work.model()
    make: Callable[[nn.Module], SGD] = partial(Work.optimizer, work)
    settings = _settings(work) | (more or {})
    trainer = Trainer(
        model,
        train=data,
        optimizer=make,
        loss=nn.CrossEntropyLoss(),
        hooks=[hook],
        settings=settings,
        runs=folder,
    )
    with redirect_stdout(io.StringIO()):  # its table is another one
        trainer.fit()
    return RunFolder.open(folder / settings["name"])


def _settings(work: Work) -> dict[str, Any]:
    return {
        "name": "run",
        "data.global_batch_size": work.batch,
        "data.num_workers": work.workers,
        "data.drop_last": True,  # one shape for compiled code and for CUDA graphs
        "train.steps": work.size.steps,
        "train.precision": "bf16",
        "train.channels_last": True,
        "train.eval_every_epochs": None,
        "ddp.static_graph": work.mode == "CUDA graphs",
        "checkpoint.every_steps": 10**6,
        "checkpoint.every_minutes": None,
        "tracking.uri": None,
        "tracking.log_every_steps": _LOGGED_EVERY,
        "launch.device": work.device.type,
    }


def _waiting_share(run: RunFolder, *, after: int) -> float:
    values = [
        float(record["values"]["data_wait_share"])
        for record, _ in iterate_journal(run.journal_path(0))
        if record["kind"] == "metrics" and record["step"] > after and "data_wait_share" in record["values"]
    ]
    return sum(values) / len(values)
