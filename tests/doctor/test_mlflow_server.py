"""MLflow where it is well, refuses, is silent, or is something else."""

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from dist_trainer.doctor import mlflow_server
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.mlflow_server import check_mlflow
from dist_trainer.doctor.subject import subject_of
from tests.tracking.servers import free_port

OURS = version("mlflow")


def look(tmp_path: Path, uri: str) -> Finding:
    (found,) = check_mlflow(subject_of([f"tracking.uri={uri}"], tmp_path))
    return found


@contextmanager
def answering(
    code: int, says: str, *, login: str = "", to: str = "", heard: list[str | None] | None = None
) -> Iterator[str]:
    """A server that may want a login, or send everybody on; `heard` is what it was shown."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers["Authorization"]
            if heard is not None:
                heard.append(shown)
            body = b"OK" if self.path == "/health" else says.encode()
            self.send_response(401 if login and shown != login else code)
            if to:
                self.send_header("Location", f"{to}{self.path}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_of_our_version_is_fine(tmp_path: Path) -> None:
    with answering(200, OURS) as uri:
        found = look(tmp_path, uri)
    assert found.state == "fine"
    assert OURS in found.found


@pytest.mark.parametrize(
    ("code", "says", "word"),
    [
        (200, "1.30.0", "the client here"),
        (200, "<html>a login page</html>", "not as MLflow does"),
        (404, "", "HTTP 404"),
        (401, "", "wants a login"),
    ],
)
def test_a_server_that_is_another_is_a_warning(code: int, says: str, word: str, tmp_path: Path) -> None:
    with answering(code, says) as uri:
        found = look(tmp_path, uri)
    assert found.state == "warning"
    assert word in found.found
    assert found.advice


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without a login of the one who runs the tests."""
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    return place


def test_the_login_is_that_of_mlflow_s_own_client(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(200, OURS, login="Basic bWU6c2VjcmV0") as uri:  # me:secret
        assert "wants a login" in look(tmp_path, uri).found
        (home / ".mlflow").mkdir()
        (home / ".mlflow" / "credentials").write_text(
            "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = other%\n"
        )
        assert "refuses the login (HTTP 401)" in look(tmp_path, uri).found
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        assert look(tmp_path, uri).state == "fine"
    (home / ".mlflow" / "credentials").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    with answering(200, OURS, login="Bearer token") as uri:
        assert look(tmp_path, uri).state == "fine"


def test_a_login_is_not_shown_to_where_a_server_sends_us_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    first: list[str | None] = []
    other: list[str | None] = []
    with answering(200, OURS, heard=other) as there, answering(302, "", to=there, heard=first) as uri:
        assert look(tmp_path, uri).state == "fine"
    assert first == ["Bearer token"] * 2
    assert other == [None] * 2


def test_a_port_that_refuses_is_a_warning_without_the_password(tmp_path: Path) -> None:
    found = look(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert found.state == "warning"
    assert "connection refused" in found.found
    assert "sync" in found.advice
    assert mlflow_server.shown("http://me:secret@host:1/x") == "http://host:1/x"


@pytest.mark.timeout(30)
def test_a_server_that_takes_the_connection_and_says_nothing_does_not_hold_anybody_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = look(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}")
    assert found.state == "warning"
    assert "said nothing" in found.found


def test_a_database_that_is_none_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = "sqlite:///mlflow.db"
    assert look(tmp_path, uri).state == "fine"
    assert not Path("mlflow.db").exists()
    sqlite3.connect("mlflow.db").close()
    assert look(tmp_path, uri).state == "fine"
    Path("mlflow.db").write_text("no database, " * 100)
    found = look(tmp_path, uri)
    assert found.state == "warning"
    assert "not a database" in found.found


def test_no_mlflow_is_no_warning(tmp_path: Path) -> None:
    assert look(tmp_path, "null").state == "skipped"
