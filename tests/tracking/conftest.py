"""One MLflow server for all tests, and one that a test may kill."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.tracking.servers import Server, make_run


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    yield server.start()
    server.stop()


@pytest.fixture
def fragile_server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet, and the test's own to start and kill."""
    server = Server(tmp_path / "fragile-server")
    yield server
    server.stop()


@pytest.fixture
def run(server: Server, tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, server.uri)


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
