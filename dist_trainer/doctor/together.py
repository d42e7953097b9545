"""What the nodes of a job try with each other in a folder that all of them should see.

<runs>/.doctor-<nonce>/
  request.json          what is asked for, by who asks
  here-<rank>.json      a node has arrived: its name, its host, its interfaces, its step
  port.json             where the first node listens for the others' ranks
  ping, pong-<rank>     replaced by turns: the first node's number, and each other's answer to it
  race-<n>.json         created by all at once; wins-<rank>.json says who got how many
  report-<rank>.json    what the node found
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from dist_trainer.adapters.file_lock import hold
from dist_trainer.adapters.files import create_exclusively, write_json
from dist_trainer.adapters.interfaces import interfaces
from dist_trainer.adapters.records import read_record
from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor.file_system import is_locked
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.network import Across
from dist_trainer.doctor.ranks import Meeting
from dist_trainer.errors import DistTrainerError

SHARED = "shared"  # the names of what is told once for all nodes begin with it
ARRIVE_WITHIN_S = 30.0
TOGETHER_WITHIN_S = 60.0
_SEEN_WITHIN_S = 40.0  # a cache of an NFS client may keep what is old for 30 s, or for a minute
_LATE_S = 5.0
_PINGS, _RACES = 5, 20
_POLL_S = 0.01
_EVERY_NODE = "the run folder must be on one file system that every node sees, and sees as it is now; "
_STALE = _EVERY_NODE + "NFS: mount it with actimeo=1, or lookupcache=positive"
T = TypeVar("T")


@dataclass(frozen=True)
class Here:
    """A node that has arrived."""

    node: str
    host: str
    step: str
    interfaces: tuple[str, ...]
    loopbacks: tuple[str, ...]


@dataclass(frozen=True)
class Pong:
    """An answer; with the last one whether the first node's lock was seen."""

    number: int
    is_locked: bool = False


@dataclass(frozen=True)
class Ping:
    """The first node's word."""

    number: int


@dataclass(frozen=True)
class Wins:
    """The races that this node won."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """Where the first node listens."""

    address: str
    port: int


class Nodes:
    """This node among the others."""

    def __init__(self, folder: Path, job: SlurmJob) -> None:
        self.folder, self.rank, self.size, self._job = folder, job.node_rank, job.node_count, job
        self._come_until = time.monotonic() + ARRIVE_WITHIN_S

    def arrive(self) -> None:
        """Tell the others, and who asks."""
        there = interfaces()
        here = Here(
            self._job.node,
            socket.gethostname(),
            self._job.step,
            tuple(each.name for each in there if not each.is_loopback),
            tuple(each.name for each in there if each.is_loopback),
        )
        write_json(self.folder / f"here-{self.rank}.json", asdict(here))

    def all_here(self) -> list[Here]:
        """Every node, once all have arrived; DistTrainerError where some do not."""
        while len(found := arrived(self.folder, self.size)) < self.size:
            if time.monotonic() > self._come_until:
                there = ", ".join(here.node for here in found.values())
                raise DistTrainerError(f"of {self.size} nodes only {there} can be seen in {self.folder}")
            time.sleep(_POLL_S)
        return [found[rank] for rank in sorted(found)]

    def across(self, listen: Callable[[str], tuple[int, int]]) -> Across | None:
        """How this node's rank meets the others'; None where it is alone. `listen` opens a port at an address."""
        if self.size == 1:
            return None
        all_here = self.all_here()
        names = _common(all_here)
        if self.rank > 0:
            port = _wait(lambda: _read(Port, self.folder / "port.json"), ARRIVE_WITHIN_S)
            if port is None:
                raise DistTrainerError("the first node does not say where it listens")
            return Across(Meeting(port.address, port.port, self.rank, self.size), names)
        address = _reachable(all_here[0])
        number, descriptor = listen(address)
        write_json(self.folder / "port.json", asdict(Port(address, number)))
        return Across(Meeting(address, number, 0, self.size, descriptor), names)

    def check_files(self) -> Iterator[Finding]:
        """What one node writes the others see, one file has one creator, one lock one holder; told by the first."""
        if self.size == 1:
            return
        self.all_here()
        if self.rank == 0:
            yield from self._ask_others()
        else:
            self._answer()
        yield from self._race()

    def _ask_others(self) -> Iterator[Finding]:
        lock = self.folder / "lock"
        longest_s = 0.0
        with hold(lock, held=lambda owner: DistTrainerError("somebody else holds a new lock")):
            for number in range(1, _PINGS + 1):
                began = time.monotonic()
                write_json(self.folder / "ping", asdict(Ping(number)))
                late = self._silent(number)
                if late:
                    words = f"what the first node replaces is not seen by {', '.join(late)} in {_SEEN_WITHIN_S:g} s"
                    yield Finding("shared files", "broken", words, _STALE)
                    return
                longest_s = max(longest_s, (time.monotonic() - began) / 2)
        yield _seen(longest_s)
        blind = [str(rank) for rank in range(1, self.size) if not self._pong(rank).is_locked]
        if blind:
            words = f"a lock of the first node does not hold on node {', '.join(blind)}"
            advice = "two nodes could train one run at once: mount it with locks (NFS without nolock, Lustre flock)"
            yield Finding("shared locks", "broken", words, advice)
        else:
            yield Finding("shared locks", "fine", "one holder on all nodes")

    def _silent(self, number: int) -> list[str]:
        """The names of those who do not answer."""
        waiting = set(range(1, self.size))

        def heard() -> bool:
            waiting.difference_update([rank for rank in waiting if self._pong(rank).number == number])
            return not waiting

        _wait(lambda: heard() or None, _SEEN_WITHIN_S)
        there = arrived(self.folder, self.size)
        return [there[rank].node for rank in sorted(waiting)]

    def _pong(self, rank: int) -> Pong:
        return _read(Pong, self.folder / f"pong-{rank}") or Pong(0)

    def _answer(self) -> None:
        for number in range(1, _PINGS + 1):
            if not self._is_pinged(number):
                return
            held = is_locked(self.folder / "lock")
            write_json(self.folder / f"pong-{self.rank}", asdict(Pong(number, held)))

    def _is_pinged(self, number: int) -> bool:
        """Whether the first node's number came in time."""

        def look() -> bool | None:
            ping = _read(Ping, self.folder / "ping")
            return True if ping is not None and ping.number >= number else None

        return _wait(look, _SEEN_WITHIN_S) is not None

    def _race(self) -> Iterator[Finding]:
        names = {number: self.folder / f"race-{number}.json" for number in range(_RACES)}
        wins = [number for number, path in names.items() if create_exclusively(path, {"by": self.rank})]
        write_json(self.folder / f"wins-{self.rank}.json", asdict(Wins(tuple(wins))))
        if self.rank > 0:
            return
        found = [self._wins(rank) for rank in range(self.size)]
        won = sorted(number for each in found if each is not None for number in each.numbers)
        if won == list(range(_RACES)):
            yield Finding("shared creates", "fine", "one creator of each file")
            return
        words = f"of {_RACES} files that all created at once, {len(won)} were created"
        yield Finding(
            "shared creates", "broken", words, f"{_EVERY_NODE}two nodes could commit the same checkpoint"
        )

    def _wins(self, rank: int) -> Wins | None:
        return _wait(lambda: _read(Wins, self.folder / f"wins-{rank}.json"), _SEEN_WITHIN_S)


def arrived(folder: Path, size: int) -> dict[int, Here]:
    """The nodes that have arrived, by rank."""
    found = {rank: _read(Here, folder / f"here-{rank}.json") for rank in range(size)}
    return {rank: here for rank, here in found.items() if here is not None}


def _seen(longest_s: float) -> Finding:
    measured = {"seen_after_s": longest_s}
    if longest_s <= _LATE_S:
        return Finding("shared files", "fine", measured=measured)
    advice = f"jobs start and stop later by that; {_STALE}"
    return Finding("shared files", "warning", advice=advice, measured=measured)


def _common(nodes: list[Here]) -> tuple[str, ...]:
    """The interfaces that every node has; the loopback one only where all nodes are one machine."""
    names = [name for name in nodes[0].interfaces if all(name in here.interfaces for here in nodes)]
    is_one = len({here.host for here in nodes}) == 1
    return (*(nodes[0].loopbacks if is_one else ()), *names)


def _reachable(first: Here) -> str:
    """By which name the first node can be listened at: SLURM's, where it leads here, else its host's."""
    for name in (first.node, first.host):
        with suppress(OSError), socket.create_server((name, 0)):
            return name
    return first.host


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return read_record(kind, path.read_bytes())
    except (OSError, ValueError):
        return None


def _wait(look: Callable[[], T | None], within_s: float) -> T | None:
    """The first answer; None where there is none in time."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found
