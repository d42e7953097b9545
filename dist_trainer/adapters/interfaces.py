"""The network interfaces of this machine, and which of them the user named for gloo and NCCL."""

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAMING = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_GET_FLAGS, _GET_ADDRESS = 0x8913, 0x8915  # netdevice(7): SIOCGIFFLAGS, SIOCGIFADDR
_UP, _LOOPBACK = 0x1, 0x8
_IPV6 = Path("/proc/net/if_inet6")


@dataclass(frozen=True)
class Interface:
    """One that is up and has an address."""

    name: str
    address: str  # IPv4 where there is one, else IPv6
    is_loopback: bool


def interfaces() -> list[Interface]:
    """Those over which processes can speak, in the kernel's order."""
    found, version_6 = [], _addresses_of_version_6()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            flags, address = _flags(asked, name), _address(asked, name) or version_6.get(name)
            if flags & _UP and address:
                found.append(Interface(name, address, bool(flags & _LOOPBACK)))
    return found


def named_interfaces(of_workers: Mapping[str, str]) -> dict[str, str]:
    """What the variables say that choose an interface: the workers' own (launch.env), else this process's."""
    both = {**os.environ, **of_workers}
    return {name: both[name] for name in NAMING if both.get(name)}


def _flags(asked: socket.socket, name: str) -> int:
    with suppress(OSError):  # gone meanwhile
        (flags,) = struct.unpack_from("H", fcntl.ioctl(asked, _GET_FLAGS, _request(name)), 16)
        return int(flags)
    return 0


def _address(asked: socket.socket, name: str) -> str | None:
    with suppress(OSError):  # it has none
        return socket.inet_ntoa(fcntl.ioctl(asked, _GET_ADDRESS, _request(name))[20:24])
    return None


def _request(name: str) -> bytes:
    return struct.pack("256s", name.encode()[:15])


def _addresses_of_version_6() -> dict[str, str]:
    """The first of each interface that holds beyond its own link."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in _IPV6.read_text().splitlines():
            digits, _, _, scope, _, name = line.split()
            if scope != "20":  # of the link alone: an address without meaning elsewhere
                found.setdefault(name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found
