"""What workers do in these tests: small stand-ins for dist_trainer.worker, named by "module:function"."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_trainer.adapters import distributed
from dist_trainer.errors import ConfigError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal


class Rank:
    """One gloo rank that takes steps: an all-reduce, a beat, and an agreement to stop."""

    def __init__(self, run_folder: str) -> None:
        self.run = RunFolder.open(run_folder)
        self.wanted: set[int] = set()
        self.started_with_torch = "torch" in sys.modules
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: self.wanted.add(number))
        self.group = distributed.join("cpu", timeout_s=20)
        self.rank, self.attempt = self.group.rank, self.group.fence
        self.pulse = Heartbeat(self.run.heartbeat_path(self.rank), rank=self.rank, attempt=self.attempt)
        self.group.waiting = partial(self.pulse.waiting, "exchange")

    def step(self, number: int) -> bool:
        """Take one; True when the ranks agree to stop."""
        self.pulse.beat(number, "train")
        total = self.group.sum_over_ranks(torch.tensor([1, len(self.wanted)]))
        assert total[0] == self.group.world_size
        return bool(total[1] > 0)

    def note(self, name: str, text: Any = "") -> None:
        """Leave a file in the run folder."""
        (self.run.path / f"{name}-{self.attempt}-{self.rank}").write_text(str(text))


def finish(run_folder: str) -> None:
    """Three steps."""
    rank = Rank(run_folder)
    for number in range(3):
        rank.step(number)
    print(f"rank {rank.rank} says done")
    print("and this on the other stream", file=sys.stderr)
    rank.note("pid", os.getpid())
    rank.note("threads", torch.get_num_threads())
    rank.group.leave()


def until_stopped(run_folder: str) -> None:
    """Steps until told to stop; then writes what it was told."""
    rank = Rank(run_folder)
    rank.note("pid", os.getpid())
    number = 0
    while not rank.step(number):
        number += 1
        time.sleep(0.01)
    rank.note("told", sorted(signal.Signals(number).name for number in rank.wanted))
    if rank.rank == 0:
        rank.run.write_status(Status("stopped", "asked to", number))
    rank.group.leave()


def deaf(run_folder: str) -> None:
    """Never listens."""
    Rank(run_folder).note("pid", os.getpid())
    while True:
        time.sleep(0.1)


def killed_three_times(run_folder: str) -> None:
    """Rank 1 dies in its first three attempts, rank 0 in the fourth."""
    rank = Rank(run_folder)
    for number in range(5):
        rank.step(number)
        victim = {1: 1, 2: 1, 3: 1, 4: 0}.get(rank.attempt)
        if number == 2 and rank.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
    rank.group.leave()


def killed_when_asked(run_folder: str) -> None:
    """Steps until a file says which rank is to die."""
    rank = Rank(run_folder)
    rank.note("pid", os.getpid())
    for number in range(10_000):
        rank.step(number)
        if (rank.run.path / f"kill-{rank.rank}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)


def rank_one_hangs(run_folder: str) -> None:
    """Rank 1 gets no further in its first attempt."""
    rank = Rank(run_folder)
    for number in range(8):
        while number == 5 and rank.rank == rank.attempt == 1:
            time.sleep(0.1)
        rank.step(number)
        time.sleep(0.2)  # long enough to be seen: a pace is learnt
    rank.group.leave()


def rank_two_fails(run_folder: str) -> None:
    """Rank 2 raises at a step that depends on the attempt, and the others lose their connection."""
    rank = Rank(run_folder)
    for number in range(20):
        rank.step(number)
        if rank.rank == 2 and number == 3 * rank.attempt:
            raise ValueError("the real cause")


def fails_alike(run_folder: str) -> None:
    """The same exception at the same step, on one rank or the other."""
    rank = Rank(run_folder)
    for number in range(5):
        rank.step(number)
        if rank.rank == rank.attempt % 2 and number == 3:
            raise ValueError("always the same")


def user_mistake(run_folder: str) -> None:
    """Every rank finds the same mistake."""
    raise ConfigError("optimizer.lr must be > 0, got -1")


def calls_exit(run_folder: str) -> None:
    """The user's code takes step 2 for the end."""
    rank = Rank(run_folder)
    for number in range(5):
        rank.step(number)
        if number == 2:
            sys.exit(0)


def vanishes(run_folder: str) -> None:
    """A training in the middle of which the processes end as if all were well."""
    rank = Rank(run_folder)
    if rank.rank == 0:
        rank.run.write_status(Status("running", step=0))
    for number in range(3):
        rank.step(number)
    os._exit(0)


def vanishes_early(run_folder: str) -> None:
    """The processes end before they say anything."""
    os._exit(0)


def saves_and_goes_deaf(run_folder: str) -> None:
    """A checkpoint at step 3, and then no more."""
    rank = Rank(run_folder)
    with Journal(rank.run.journal_path(rank.rank), attempt=rank.attempt, rank=rank.rank) as journal:
        for number in range(5):
            rank.step(number)
        if rank.rank == 0:
            journal.event("saved", step=3, checkpoint="step-000000003-f0001")
    rank.note("pid", os.getpid())
    while True:
        time.sleep(0.1)


def user_module(run_folder: str) -> None:
    """Import a module that is only in the working folder."""
    import users_own_module

    Rank(run_folder).note("found", users_own_module.VALUE)


def train_a_little(run_folder: str) -> None:
    """What the trainer writes: start, metrics, an evaluation, a checkpoint's marker, results, status."""
    rank = Rank(run_folder)
    folder = Path(run_folder)
    last = 4 if "  epochs: 1\n" in (folder / "config.yaml").read_text() else 8
    first = rank.run.read_status().step or 0
    with Journal(rank.run.journal_path(rank.rank), attempt=rank.attempt, rank=rank.rank) as journal:
        if rank.rank == 0:
            journal.event(
                "started", first_step=first, total_steps=last, steps_per_epoch=4, world_size=2, device="cpu"
            )
            commit = folder / "checkpoints" / f"step-{rank.attempt}" / "COMMIT.json"
            commit.parent.mkdir(exist_ok=True)
            commit.write_text("{}")
        for number in range(first, last):
            stop = rank.step(number)
            if rank.rank == 0:
                journal.metrics(number, {"train/loss": 1 / (number + 1), "epoch": number / 4})
            if stop:
                break
            time.sleep(2 if "slow" in run_folder else 0)
        if rank.rank == 0:
            journal.metrics(last, {"val/accuracy": 0.9})
            state, results = (
                ("stopped", {}) if stop else ("finished", {"test/accuracy": 0.9375, "val/accuracy": 0.9})
            )
            rank.run.write_status(Status(state, "", number if stop else last, results=results))
    rank.note("pid", os.getpid())
    rank.group.leave()
