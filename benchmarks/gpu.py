"""python -m benchmarks.gpu [--rounds N]: what a GPU is kept from by the Trainer, beside a loop written by hand.

Runs where a CUDA device is, on torch 2.11 and later; needs neither mlflow nor submitit. ResNet-50 in bf16 and
channels_last on synthetic images and on CIFAR-10's, eager, compiled and with CUDA graphs. `--device cpu --tiny` goes
the same way with a small net and a few steps, so that it can be tried anywhere; its numbers mean nothing.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.by_hand import by_hand
from benchmarks.compared import FLOOR, HERE, beside_peer, middle
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure, as_goals
from benchmarks.on_device import (
    CIFAR_SHAPE,
    FULL,
    MODES,
    TINY,
    Mode,
    Size,
    Work,
    copies_hidden,
    here,
    write_images,
)
from benchmarks.saves import Peer, Saver, Trained, folder_on_disk

BY_HAND = "hand-written"
ROUNDS = 5
RATE, WAITING, HIDDEN, STALL = 0.98, 0.02, 0.9, 0.12  # goals
_CIFAR = Path("data/cifar10.npz")
_CIFAR_ROWS = 50_000


@dataclass(frozen=True)
class Case:
    """One training and what it is called in the table."""

    name: str
    work: Work


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where there is no device too, since nothing is wrong then."""
    given = _parse(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA device here: nothing was measured. `--device cpu --tiny` tries the same on the CPU."
        )
        return 0
    if given.device == "cpu" and not given.tiny:
        print("On a CPU there is only --tiny: ResNet-50 would take hours.", file=sys.stderr)
        return 2
    device, size = torch.device(given.device), TINY if given.tiny else FULL
    print(f"{machine(device)}; {given.rounds} rounds:", flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for case in _cases(size, device, Path(folder), given):
            figures += attempt(case.name, partial(train, case, given.rounds))
    figures += attempt("save", partial(save, size, device, given.rounds))
    print("\n".join(["", *as_goals(figures)]))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small net and few steps")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each measurement; default {ROUNDS}")
    parser.add_argument("--mode", choices=MODES, action="append", help="this one; may be repeated")
    parser.add_argument(
        "--cifar", type=Path, default=_CIFAR, help="made by `dist-trainer data pack`; random where missing"
    )
    parser.add_argument("--workers", type=int, default=0, help="the Trainer's loader processes")
    return parser.parse_args(arguments)


def machine(device: torch.device) -> str:
    """What the numbers belong to."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cores = len(os.sched_getaffinity(0))
    return f"{where}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def _cases(size: Size, device: torch.device, folder: Path, given: argparse.Namespace) -> Iterator[Case]:
    synthetic = write_images(folder / "synthetic.npz", size.rows, size.shape)
    is_real = given.cifar.exists() and not given.tiny
    rows = size.rows if given.tiny else _CIFAR_ROWS
    cifar = given.cifar if is_real else write_images(folder / "cifar.npz", rows, CIFAR_SHAPE)
    images = "CIFAR-10" if is_real else "random images of CIFAR-10's shape"
    modes: Sequence[Mode] = given.mode or MODES
    for mode in modes:
        work = Work(size, synthetic, size.batch, False, device, mode, given.workers)
        yield Case(f"{size.net}, synthetic, {mode}", work)
        work = replace(work, file=cifar, batch=size.cifar_batch, augmented=True)
        yield Case(f"{size.net}, {images}, augmented, {mode}", work)


def attempt(name: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """What is measured; one that fails is said, and the others are measured all the same."""
    try:
        return measure()
    except Exception as error:
        print(f"{name}: could not be measured: {type(error).__name__}: {error}", flush=True)
        return []


def train(case: Case, rounds: int) -> list[Figure]:
    """In turns: the Trainer, the loop by hand, and that loop on one batch that stays on the device."""
    work = case.work
    variants: dict[str, Callable[[], Sample]] = {
        HERE: partial(here, work),
        BY_HAND: partial(by_hand, work),
        FLOOR: partial(by_hand, work, resident=True),
    }
    samples = in_turns(variants, rounds)
    waiting, hidden = middle(samples[HERE], "waiting"), copies_hidden(work)
    figures = [
        beside_peer(samples, case.name, "images/s", "images", peer=BY_HAND, goal=RATE, at_least=True),
        Figure(f"waiting for data: {case.name}", "of the time", waiting, {}, None, None, WAITING),
    ]
    if hidden is not None:
        what = f"copies beside computing: {case.name}"
        figures.append(Figure(what, "of the copies", hidden, {}, None, None, HIDDEN, at_least=True))
    return figures


def save(size: Size, device: torch.device, rounds: int) -> list[Figure]:
    """What the training thread loses to a save of state that lies on the device."""
    peer_name = "torch.save + fsync"
    with folder_on_disk() as folder:
        training = Trained(size.state_mb, device)
        saver, peer = Saver(folder / "here", training), Peer(folder, training)
        saver.save()  # the first one makes the pinned buffers
        peer.save()
        samples = in_turns({HERE: saver.save, peer_name: peer.save}, rounds)
    what = f"training thread, a save of {size.state_mb} MB"
    return [beside_peer(samples, what, "s", "stall", peer=peer_name, goal=STALL)]


if __name__ == "__main__":
    sys.exit(main())
