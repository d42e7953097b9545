"""One MLflow server for the tests that leave it alone, one for those that kill or freeze it."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.tracking.servers import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def fragile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started yet."""
    server = Server(tmp_path_factory.mktemp("fragile-server"))
    yield server
    server.stop()


@pytest.fixture
def fragile(fragile_server: Server) -> Iterator[Server]:
    """Up; whatever is done to it is undone for the next test."""
    if not fragile_server.is_running:
        fragile_server.start()
    yield fragile_server
    if fragile_server.is_running:
        fragile_server.signal(signal.SIGCONT)


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
