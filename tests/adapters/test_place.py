"""Where a rank and an agent listen: on loopback where all is on one node, else where the user says."""

import json
import os
import socket
import struct
import subprocess
import sys

import psutil
import pytest
from torch.distributed import TCPStore

from dist_trainer.adapters.listening import listen_on
from dist_trainer.adapters.place import Place, on_loopback_if_alone
from tests.launchers.processes import REPOSITORY
from tests.ports import LOOPBACK, listeners

JOIN = """
import json, os
from dist_trainer.adapters.distributed import join
from tests.ports import listeners
group = join("cpu", timeout_s=20)
print(json.dumps(sorted(listeners([os.getpid()]))))
group.leave()
"""
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
pytestmark = pytest.mark.timeout(60)


def place(world_size: int) -> Place:
    return Place(0, world_size, 0, 2, launched=True, fence=None)


def test_torchs_store_takes_a_socket_of_ours_and_listens_nowhere_else() -> None:
    before = listeners([os.getpid()])
    port, listening = listen_on("127.0.0.1")
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening)
    assert store.port == port
    assert listeners([os.getpid()]) - before == {("0100007F", port)}
    store.set("a", "1")
    assert TCPStore("127.0.0.1", port, is_master=False).get("a") == b"1"
    del store
    assert listeners([os.getpid()]) == before


def test_one_node_keeps_to_loopback_and_leaves_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with on_loopback_if_alone(place(2)):
        assert [os.environ[name] for name in VARIABLES] == ["lo", "=lo"]
    assert not set(VARIABLES) & set(os.environ)
    with on_loopback_if_alone(place(4)):
        assert not set(VARIABLES) & set(os.environ)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with on_loopback_if_alone(place(2)):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.parametrize("named", [False, True])
def test_gloo_listens_on_loopback_or_on_the_interface_that_the_user_names(named: bool) -> None:
    variables: dict[str, str] = {}
    wanted = LOOPBACK
    if named:
        found = [
            (name, entry.address)
            for name, entries in psutil.net_if_addrs().items()
            for entry in entries
            if entry.family == socket.AF_INET and name != "lo"
        ]
        if not found:
            pytest.skip("this machine has no interface but lo")
        variables = {"GLOO_SOCKET_IFNAME": found[0][0]}
        (address,) = struct.unpack("=I", socket.inet_aton(found[0][1]))
        wanted = {f"{address:08X}"}
    command = [sys.executable, "-c", JOIN]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ, **variables}
    )
    addresses = {address for address, _ in json.loads(done.stdout)}
    assert addresses and addresses <= wanted
