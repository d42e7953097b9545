"""The folder in which the nodes of a job tell each other, and the command, what they find.

<runs>/.doctor-<nonce>/
  request.json          what is asked for, by who asks
  here-<rank>.json      a node has arrived: its name, its host, its interfaces, its step
  port.json             where the first node listens for the others' ranks
  ping, pong-<rank>     replaced by turns: the first node's number, and each other's answer to it
  race-<n>.json         created by all at once; wins-<rank>.json says who got how many
  report-<rank>.json    what the node found

What may not be there yet is looked for in the folder's list of names: a client of NFS remembers for up to a minute
that a name it asked for was not there.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dist_trainer.adapters.records import read_record

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
class Ping:
    """The first node's word; one number more than there are pings says that there are no more."""

    number: int


@dataclass(frozen=True)
class Pong:
    """An answer, and whether the first node's lock was seen."""

    number: int
    is_locked: bool = False


@dataclass(frozen=True)
class Wins:
    """The races that this node won."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """Where the first node listens."""

    address: str
    port: int


def read(kind: type[T], path: Path) -> T | None:
    """None where it cannot be read."""
    try:
        return read_record(kind, path.read_bytes())
    except (OSError, ValueError):
        return None


def read_new(kind: type[T], folder: Path, pattern: str, size: int, before: Mapping[int, T]) -> dict[int, T]:
    """Those of the files, one of each rank, that are there, besides what was read before: {} for the rank."""
    found = dict(before)
    names = list_names(folder)
    for rank in range(size):
        name = pattern.format(rank)
        if rank not in found and name in names and (each := read(kind, folder / name)) is not None:
            found[rank] = each
    return {rank: found[rank] for rank in sorted(found)}


def arrived(folder: Path, size: int, before: Mapping[int, Here] | None = None) -> dict[int, Here]:
    """The nodes that have arrived, by rank; those of before are not read again."""
    return read_new(Here, folder, "here-{}.json", size, before or {})


def list_names(folder: Path) -> set[str]:
    """What is in the folder by now; nothing where it cannot be seen."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def poll_s(size: int) -> float:
    """How long to wait between two looks: many nodes share one file server."""
    return min(1.0, 0.01 * size)


def wait(look: Callable[[], T | None], within_s: float, *, every_s: float) -> T | None:
    """The first answer; None where there is none in time."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(every_s)
    return found
