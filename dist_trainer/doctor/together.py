"""What the nodes of a job try with each other in a folder that all of them should see."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from dist_trainer.adapters.file_lock import hold
from dist_trainer.adapters.files import create_exclusively, write_json
from dist_trainer.adapters.interfaces import interfaces
from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor.file_system import is_locked
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.network import Across
from dist_trainer.doctor.ranks import Meeting
from dist_trainer.doctor.shared_folder import (
    Here,
    Ping,
    Pong,
    Port,
    Wins,
    arrived,
    list_names,
    poll_s,
    read,
    read_new,
    wait,
)
from dist_trainer.errors import DistTrainerError

SHARED = "shared"  # the names of what is told once for all nodes begin with it
ARRIVE_WITHIN_S = 60.0  # a cache of an NFS client may keep what is old for so long
TOGETHER_WITHIN_S = 180.0
_ANSWER_WITHIN_S = 90.0  # there and back
_RACE_WITHIN_S = 60.0
_LATE_S, _ENOUGH_S = 5.0, 10.0
_PINGS, _RACES = 5, 20
_EVERY_NODE = "the run folder must be on one file system that every node sees, and sees as it is now; "
_STALE = _EVERY_NODE + "NFS: mount it with actimeo=1, or lookupcache=positive"


class Nodes:
    """This node among the others."""

    def __init__(self, folder: Path, job: SlurmJob) -> None:
        self.folder, self.rank, self.size, self._job = folder, job.node_rank, job.node_count, job
        self._come_until = time.monotonic() + ARRIVE_WITHIN_S
        self._here: dict[int, Here] = {}
        self._poll_s = poll_s(self.size)

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
        while len(self._look_who_is_here()) < self.size:
            if time.monotonic() > self._come_until:
                there = ", ".join(self._names(self._here))
                raise DistTrainerError(f"of {self.size} nodes only {there} can be seen in {self.folder}")
            time.sleep(max(0.05, self._poll_s))
        return [self._here[rank] for rank in range(self.size)]

    def _look_who_is_here(self) -> dict[int, Here]:
        self._here.update(arrived(self.folder, self.size, self._here))  # two checks look at the same time
        return self._here

    def across(self, listen: Callable[[str], tuple[int, int]]) -> Across | None:
        """How this node's rank meets the others'; None where it is alone. `listen` opens a port at an address."""
        if self.size == 1:
            return None
        all_here = self.all_here()
        names = _common(all_here)
        if self.rank > 0:
            port = wait(self._port, ARRIVE_WITHIN_S, every_s=self._poll_s)
            if port is None:
                raise DistTrainerError("the first node does not say where it listens")
            return Across(Meeting(port.address, port.port, self.rank, self.size), names)
        address = _reachable(all_here[0])
        number, descriptor = listen(address)
        write_json(self.folder / "port.json", asdict(Port(address, number)))
        return Across(Meeting(address, number, 0, self.size, descriptor), names)

    def _port(self) -> Port | None:
        return read(Port, self.folder / "port.json") if "port.json" in list_names(self.folder) else None

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
        with hold(lock, held=lambda owner: DistTrainerError("somebody else holds a new lock")):
            silent, longest_s = self._ping()
        if silent:
            names = ", ".join(self._names(silent))
            words = f"what the first node replaces is not seen by {names} in {_ANSWER_WITHIN_S:g} s"
            yield Finding("shared files", "broken", words, _STALE)
        else:
            yield _seen(longest_s)
        yield self._locks([rank for rank in range(1, self.size) if rank not in silent])

    def _ping(self) -> tuple[set[int], float]:
        """Who does not answer, and the longest time until the others saw a file: half of there and back.

        One answer tells enough of a file system that is slow; what it costs is waited for once, not five times.
        """
        began, longest_s, silent = time.monotonic(), 0.0, set[int]()
        for number in range(1, _PINGS + 1):
            asked = time.monotonic()
            write_json(self.folder / "ping", asdict(Ping(number)))
            silent = self._silent(number)
            longest_s = max(longest_s, (time.monotonic() - asked) / 2)
            if silent or time.monotonic() - began > _ENOUGH_S:
                break
        write_json(self.folder / "ping", asdict(Ping(_PINGS + 1)))
        return silent, longest_s

    def _silent(self, number: int) -> set[int]:
        """Those who do not answer."""
        waiting = set(range(1, self.size))

        def heard() -> bool:
            names = list_names(self.folder) if number == 1 else set()
            there = [rank for rank in waiting if number > 1 or f"pong-{rank}" in names]
            waiting.difference_update([rank for rank in there if self._pong(rank).number == number])
            return not waiting

        wait(lambda: heard() or None, _ANSWER_WITHIN_S, every_s=self._poll_s)
        return waiting

    def _locks(self, answered: Sequence[int]) -> Finding:
        blind = [rank for rank in answered if not self._pong(rank).is_locked]
        if not answered:
            return Finding("shared locks", "skipped", "no other node answers")
        if not blind:
            return Finding("shared locks", "fine", "one holder on all nodes")
        words = f"a lock of the first node does not hold on {', '.join(self._names(blind))}"
        advice = (
            "two nodes could train one run at once: mount it with locks (NFS without nolock, Lustre flock)"
        )
        return Finding("shared locks", "broken", words, advice)

    def _names(self, ranks: Iterable[int]) -> list[str]:
        return [self._here[rank].node for rank in sorted(ranks)]

    def _pong(self, rank: int) -> Pong:
        return read(Pong, self.folder / f"pong-{rank}") or Pong(0)

    def _answer(self) -> None:
        """Each number of the first node's, until it says that there are no more, or nothing."""
        number = 0
        while number <= _PINGS:
            ping = wait(partial(self._newer, number), _ANSWER_WITHIN_S, every_s=self._poll_s)
            if ping is None:
                return
            number = ping.number
            if number <= _PINGS:
                held = is_locked(self.folder / "lock")
                write_json(self.folder / f"pong-{self.rank}", asdict(Pong(number, held)))

    def _newer(self, number: int) -> Ping | None:
        """The first node's word, where it is a higher number."""
        if number == 0 and "ping" not in list_names(self.folder):
            return None
        ping = read(Ping, self.folder / "ping")
        return ping if ping is not None and ping.number > number else None

    def _race(self) -> Iterator[Finding]:
        names = {number: self.folder / f"race-{number}.json" for number in range(_RACES)}
        wins = [number for number, path in names.items() if create_exclusively(path, {"by": self.rank})]
        write_json(self.folder / f"wins-{self.rank}.json", asdict(Wins(tuple(wins))))
        if self.rank == 0:
            yield self._creates(self._wins())

    def _wins(self) -> dict[int, Wins]:
        """Of all who say so in time."""
        found: dict[int, Wins] = {}

        def all_there() -> bool:
            found.update(read_new(Wins, self.folder, "wins-{}.json", self.size, found))
            return len(found) == self.size

        wait(lambda: all_there() or None, _RACE_WITHIN_S, every_s=self._poll_s)
        return found

    def _creates(self, found: Mapping[int, Wins]) -> Finding:
        won = Counter(number for each in found.values() for number in each.numbers)
        twice = sum(times > 1 for times in won.values())
        silent = set(range(self.size)) - found.keys()
        advice = f"{_EVERY_NODE}two nodes could commit the same checkpoint"
        if twice:
            words = f"of {_RACES} files that all created at once, {twice} have two creators"
            return Finding("shared creates", "broken", words, advice)
        if silent:
            words = f"not heard from {', '.join(self._names(silent))} within {_RACE_WITHIN_S:g} s"
            return Finding("shared creates", "warning", words, _STALE)
        if len(won) < _RACES:
            words = f"of {_RACES} files that all created at once, {_RACES - len(won)} have no creator"
            return Finding("shared creates", "broken", words, advice)
        return Finding("shared creates", "fine", "one creator of each file")


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
