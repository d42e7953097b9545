"""What saving and resuming 300 MB cost: beside torch.save and torch.load, and beside the bare memory and disk.

A third of the state are weights, the rest is Adam's. The first save, which makes the buffers that are kept, is not
counted; nor is the first of the others. All files are read from the page cache, where they were just written. The
others remove their file when their turn is over, not right before they write: a virtual machine may have given that
memory back to its host by then, and taking it again costs more than the write, which this project pays as well.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from benchmarks.compared import FLOOR, HERE, beside_peer
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure
from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.state import State, decode
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.checkpoint.writer import Checkpointer
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.training import digests

STATE_MB = 300
PEER = "torch.save + fsync, torch.load"
_WIDTH = 1024
_IN_MEMORY = ("tmpfs", "ramfs")


def measure(rounds: int, *, megabytes: int = STATE_MB) -> list[Figure]:
    """In turns: this project's saver, torch's, and raw bytes."""
    with folder_on_disk() as folder:
        print(f"{megabytes} MB of state in {folder} ({file_system(folder)})", flush=True)
        training = Trained(megabytes)
        saver, peer, floor = (
            Saver(folder / "here", training),
            Peer(folder, training),
            _Floor(folder, training),
        )
        for each in (saver, peer, floor):
            each.sample()
        samples = in_turns({HERE: saver.sample, PEER: peer.sample, FLOOR: floor.sample}, rounds)
    size = f"{megabytes} MB"
    return [
        beside_peer(samples, f"training thread, a save of {size}", "s", "stall", peer=PEER, goal=0.12),
        beside_peer(
            samples,
            f"training thread, a save of {size} that several ranks compare",
            "s",
            "stall",
            own_name="stall of several ranks",
            peer=PEER,
            goal=0.12,
        ),
        beside_peer(samples, f"the whole write of {size}, verifiable", "s", "whole", peer=PEER, goal=1.5),
        beside_peer(samples, f"resume of {size}, verified", "s", "resume", peer=PEER, goal=2),
    ]


@contextmanager
def folder_on_disk() -> Iterator[Path]:
    """A temporary folder that is no memory in disguise; where the usual one is, beside the current folder's files."""
    usual = Path(tempfile.gettempdir())
    where = Path.cwd() if file_system(usual) in _IN_MEMORY else usual
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=where) as folder:
        yield Path(folder)


def file_system(path: Path) -> str:
    """What kind it is, by the mount that the path lies under (proc(5): mountinfo)."""
    found, longest = "unknown", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mounted = Path(left.split()[4])
        if path.resolve().is_relative_to(mounted) and len(mounted.parts) >= longest:
            found, longest = right.split()[0], len(mounted.parts)
    return found


class Trained:
    """A model and its Adam after one step: this many MB (10^6 bytes) together."""

    def __init__(self, megabytes: int, device: str | torch.device = "cpu") -> None:
        layers = round(megabytes * 1e6 / (3 * 4 * _WIDTH * (_WIDTH + 1)))
        self.model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(max(1, layers)))).to(device)
        self.optimizer = Adam(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> State:
        """Captured as training/snapshot.py does it."""
        return State(self.model.state_dict(), {"optimizers": {"main": self.optimizer.state_dict()}})

    def settle(self) -> None:
        """Wait until the device has done what it was asked for: that is no part of a save."""
        parameter = next(self.model.parameters())
        if parameter.is_cuda:
            torch.cuda.synchronize(parameter.device)

    def tensors(self) -> dict[str, Tensor]:
        """What ranks compare before a save, see training/same_state.py."""
        found = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        for number, state in enumerate(self.optimizer.state.values()):
            found |= {f"{key} of {number}": value for key, value in state.items()}
        return found


class _TimedStore(CheckpointStore):
    """Notes when a commit was durable; what the writer does after that, retention, is not a part of it."""

    durable_at = 0.0

    def commit(self, step: int, files: Any, info: Mapping[str, Any]) -> Checkpoint:
        checkpoint = super().commit(step, files, info)
        self.durable_at = time.perf_counter()
        return checkpoint


class Saver:
    """This project's saver: what the Trainer calls on rank 0."""

    def __init__(self, folder: Path, training: Trained) -> None:
        self._training = training
        self._store = _TimedStore(Storage(folder), fence=1, highest_fence=lambda: 1)
        self._writer = Checkpointer(CheckpointConfig(), self._store, report=_fail)
        self._step = 0

    def sample(self) -> Sample:
        """One save as of a rank alone and one as of several, each waited for, and one resume."""
        saved = {**self.save(), "stall of several ranks": self.save_of_several()}
        began = time.perf_counter()
        found = self._store.newest_good()
        assert found is not None
        decode(found[1])
        return {**saved, "resume": time.perf_counter() - began}

    def save(self) -> dict[str, float]:
        """Seconds that the training thread loses, and until the checkpoint is durable."""
        self._step += 1
        self._training.settle()
        os.sync()  # what others left unwritten, as removed files, is no part of this
        began = time.perf_counter()
        self._writer.save(self._step, self._training.state())
        stall = time.perf_counter() - began
        self._writer.wait()
        return {"stall": stall, "whole": self._store.durable_at - began}

    def save_of_several(self) -> float:
        """Seconds that each of two ranks loses, which share the cores and compare what they hold before they save."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // 2))
        try:
            began = time.perf_counter()
            digests.of_tensors(self._training.tensors())
            compared = time.perf_counter() - began
            return compared + self.save()["stall"]
        finally:
            torch.set_num_threads(threads)


class Peer:
    """As it is done by hand: torch.save on the training thread into a new file, and fsync."""

    def __init__(self, folder: Path, training: Trained) -> None:
        self._path, self._training = folder / "state.pt", training

    def sample(self) -> Sample:
        """One save and one load."""
        saved = self.save()
        began = time.perf_counter()
        torch.load(self._path, map_location="cpu")
        found = {**saved, "resume": time.perf_counter() - began}
        self._path.unlink()
        return found

    def save(self) -> dict[str, float]:
        """The training thread does the whole write."""
        self._path.unlink(missing_ok=True)
        training = self._training
        training.settle()
        os.sync()
        began = time.perf_counter()
        with self._path.open("wb") as file:
            torch.save([training.model.state_dict(), training.optimizer.state_dict()], file)
            file.flush()
            os.fsync(file.fileno())
        passed = time.perf_counter() - began
        return {"stall": passed, "whole": passed}


class _Floor:
    """As many bytes: one copy in memory, one plain write with fsync, one plain read into fresh memory."""

    def __init__(self, folder: Path, training: Trained) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in training.tensors().values())
        self._path, self._data = folder / "raw", torch.ones(size, dtype=torch.uint8)
        self._copy = torch.zeros_like(self._data)
        array: Any = self._data.numpy()
        self._bytes = memoryview(array)

    def sample(self) -> Sample:
        began = time.perf_counter()
        self._copy.copy_(self._data)
        copied = time.perf_counter()
        os.sync()
        began_write = time.perf_counter()
        with self._path.open("wb", buffering=0) as file:
            left = self._bytes
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        written = time.perf_counter()
        self._path.read_bytes()
        read = time.perf_counter()
        self._path.unlink()
        return {"stall": copied - began, "whole": written - began_write, "resume": read - written}


def _fail(message: str) -> None:
    raise RuntimeError(message)
