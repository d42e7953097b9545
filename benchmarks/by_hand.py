"""The loop that an expert writes for one GPU: bytes to the device one batch ahead, everything else there.

A thread reads the next batches into pinned memory; a stream of its own copies each of them while the one before is
computed on; augmentation and normalizing run on the device. Nothing waits for the device but a log every 10 steps.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from benchmarks.frame import Sample
from benchmarks.on_device import NORMALIZE, PADDING, Work, settle

_READ_AHEAD = 3  # batches
_LOGGED_EVERY = 10

Pair = tuple[Tensor, Tensor]


def by_hand(work: Work, *, resident: bool = False) -> Sample:
    """Images a second. `resident`: on one batch that stays on the device, which is as fast as it gets."""
    size, device = work.size, work.device
    with _group(device), reading(work) as batches:
        ahead = Ahead(batches, device)
        pairs: Iterator[Pair] = repeat(next(ahead)) if resident else ahead
        model = DistributedDataParallel(
            work.model(), gradient_as_bucket_view=True, static_graph=work.mode == "CUDA graphs"
        )
        optimizer, criterion = work.optimizer(model), nn.CrossEntropyLoss()
        for step, (images, targets) in enumerate(islice(pairs, size.steps)):
            if step == size.warm:
                settle(device)
                began = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                inputs = prepared(images, augmented=work.augmented)
                loss = criterion(model(inputs.contiguous(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % _LOGGED_EVERY == 0:
                loss.item()
        settle(device)
        return {"images": (size.steps - size.warm) * work.batch / (time.perf_counter() - began)}


@contextmanager
def _group(device: torch.device) -> Iterator[None]:
    """One rank alone, as in the Trainer's run."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        destroy_process_group()


class Ahead:
    """Batches on the device, the next one being copied there while this one is used."""

    def __init__(self, batches: Iterator[Pair], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next = self._copied()

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> Pair:
        pair = self._next
        if self._stream is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._stream)
            for tensor in pair:
                tensor.record_stream(now)  # its memory is not used again before this stream is done with it
        self._next = self._copied()
        return pair

    def _copied(self) -> Pair:
        images, targets = next(self._batches)
        if self._stream is None:
            return images, targets
        with torch.cuda.stream(self._stream):
            return images.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)


@contextmanager
def reading(work: Work) -> Iterator[Iterator[Pair]]:
    """Batches for ever, in a new random order at each epoch, read ahead by a thread into pinned memory."""
    with np.load(work.file) as arrays:
        images, targets = (
            torch.from_numpy(arrays["train_x"]),
            torch.from_numpy(arrays["train_y"].astype(np.int64)),
        )
    pairs: queue.Queue[Pair] = queue.Queue(_READ_AHEAD)
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            order = torch.randperm(len(images))
            for first in range(0, len(images) - work.batch + 1, work.batch):
                rows = order[first : first + work.batch]
                _put((_pinned(images, rows, work.device), _pinned(targets, rows, work.device)))

    def _put(pair: Pair) -> None:
        while not over.is_set():
            with suppress(queue.Full):
                pairs.put(pair, timeout=0.1)
                return

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    try:
        yield iter(pairs.get, None)
    finally:
        over.set()
        thread.join()


def _pinned(whole: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    taken = torch.empty((len(rows), *whole.shape[1:]), dtype=whole.dtype, pin_memory=device.type == "cuda")
    return torch.index_select(whole, 0, rows, out=taken)


def prepared(images: Tensor, *, augmented: bool) -> Tensor:
    """Bytes on the device as the net wants them: cropped and flipped at random, then normalized."""
    if augmented:
        images = flipped(cropped(images))
    mean, std = (
        torch.tensor(NORMALIZE[name], device=images.device)[:, None, None] for name in ("mean", "std")
    )
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def cropped(images: Tensor) -> Tensor:
    """Padded with zeros on all sides, and cut out at a random place."""
    rows, _, height, width = images.shape
    padded = nn.functional.pad(images, (PADDING,) * 4).permute(0, 2, 3, 1)
    device, places = images.device, 2 * PADDING + 1
    top = (
        torch.randint(places, (rows, 1, 1), device=device)
        + torch.arange(height, device=device)[None, :, None]
    )
    left = (
        torch.randint(places, (rows, 1, 1), device=device) + torch.arange(width, device=device)[None, None, :]
    )
    taken: Tensor = padded[torch.arange(rows, device=device)[:, None, None], top, left]
    return taken.permute(0, 3, 1, 2)


def flipped(images: Tensor) -> Tensor:
    """Every second one, at random, left to right."""
    chosen: Any = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)
