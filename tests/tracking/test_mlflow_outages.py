"""What goes wrong beside a run: MLflow or the process that carries it is killed, frozen, late, slow or not alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from dist_trainer.adapters.file_lock import hold
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking import follower
from dist_trainer.tracking.follower import carry_once, follow
from dist_trainer.tracking.mlflow_sync import _connect, start
from dist_trainer.tracking.run_end import RunEnd
from dist_trainer.tracking.sync_state import SyncState
from tests.tracking.servers import (
    LOSSES,
    Server,
    Stored,
    carry,
    finish,
    log,
    make_run,
    train,
    wait_until,
)

# MLflow's own store, opened in this process
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def test_a_second_process_on_one_run_leaves_at_once(run: RunFolder) -> None:
    with hold(run.path / "mlflow-sync.lock", held=lambda owner: AssertionError()):
        began = time.monotonic()
        problem, sent = carry_once(run, connect=_connect)
    assert (problem, sent) == ("another process is carrying this run and goes on by itself", 0)
    assert time.monotonic() - began < 1


def test_a_process_waits_for_one_of_a_killed_attempt_that_still_drains(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sqlite:///mlflow.db")
    run.write_status(Status("running"))
    end = RunEnd(run, parent=os.getppid(), stale_s=None)
    process = threading.Thread(
        target=follow, args=(run, end), kwargs={"connect": _connect, "sample_every_s": 1.0}
    )
    with hold(run.path / "mlflow-sync.lock", held=lambda owner: AssertionError()):
        process.start()
        train(run, 0, 5)
        time.sleep(1.5)
        assert process.is_alive()
    wait_until(lambda: SyncState.load(run).offsets.get("rank-0.jsonl"), 40)
    finish(run)
    process.join()
    assert Stored(run, f"sqlite:///{tmp_path}/mlflow.db").points("train/loss") == LOSSES[:5]


PARENT = """
import os, sys
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.mlflow_sync import start
print(start(RunFolder.open(sys.argv[1])).pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.timeout(90)
def test_when_training_is_killed_its_process_reports_that_and_goes(run: RunFolder, server: Server) -> None:
    train(run, 0, 5)
    run.write_status(Status("running"))
    parent = subprocess.run([sys.executable, "-c", PARENT, str(run.path)], capture_output=True, check=False)
    pid = Path(f"/proc/{int(parent.stdout)}")
    wait_until(lambda: not pid.exists() or "Z" in (pid / "stat").read_text().split()[2], 40)
    stored = Stored(run, server.uri)
    assert (stored.status, stored.points("train/loss")) == ("KILLED", LOSSES[:5])


@pytest.mark.timeout(90)
def test_the_signals_that_stop_training_do_not_reach_it(run: RunFolder, server: Server) -> None:
    run.write_status(Status("running"))
    process = start(run)
    assert process is not None
    for _ in range(10):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
        time.sleep(0.1)
    train(run, 0, 3)
    finish(run)
    assert process.wait(40) == 0
    assert Stored(run, server.uri).points("train/loss") == LOSSES[:3]


def _has_moved(run: RunFolder, offsets: dict[str, int]) -> bool:
    return SyncState.load(run).offsets != offsets


@pytest.mark.timeout(120)
def test_a_process_killed_in_mid_run_is_followed_by_one_that_goes_on(run: RunFolder, server: Server) -> None:
    run.write_status(Status("running"))
    training = threading.Thread(target=train, args=(run, 0, 2000), kwargs={"pause_s": 0.005})
    training.start()
    for _ in range(2):
        process, before = start(run), SyncState.load(run).offsets
        assert process is not None
        wait_until(partial(_has_moved, run, before), 40)
        process.kill()
        process.wait()
    last = start(run)
    training.join()
    finish(run)
    assert last is not None
    assert last.wait(40) == 0
    stored = Stored(run, server.uri)
    assert (stored.status, stored.points("train/loss")) == ("FINISHED", LOSSES[:2000])


@pytest.mark.timeout(180)
def test_a_server_that_comes_late_freezes_and_is_killed_costs_no_point(
    fragile_server: Server, tmp_path: Path
) -> None:
    run = make_run(tmp_path, fragile_server.uri)
    run.write_status(Status("running"))
    process = start(run)
    assert process is not None
    training = threading.Thread(target=train, args=(run, 0, 1500), kwargs={"pause_s": 0.015})
    training.start()
    wait_until(lambda: "Connection refused" in log(run), 40)
    fragile_server.start()
    wait_until(lambda: SyncState.load(run).offsets.get("rank-0.jsonl"), 40)
    fragile_server.signal(signal.SIGSTOP)
    time.sleep(6)
    fragile_server.signal(signal.SIGCONT)
    time.sleep(2)
    fragile_server.signal(signal.SIGKILL)
    fragile_server.start()
    training.join()
    finish(run)
    assert process.wait(40) == 0
    assert carry(run) == 0
    stored = Stored(run, fragile_server.uri)
    assert stored.points("train/loss") == LOSSES[:1500]
    assert stored.status == "FINISHED"


@pytest.fixture
def frozen_in_the_end(server: Server) -> Iterator[Server]:
    yield server
    server.signal(signal.SIGCONT)


@pytest.mark.timeout(120)
def test_a_server_that_is_frozen_at_the_end_is_left_within_ten_seconds(
    run: RunFolder, frozen_in_the_end: Server
) -> None:
    run.write_status(Status("running"))
    process = start(run)
    assert process is not None
    train(run, 0, 5)
    wait_until(lambda: SyncState.load(run).artifacts.get("code.json"), 40)
    frozen_in_the_end.signal(signal.SIGSTOP)
    train(run, 5, 10)
    finish(run)
    began = time.monotonic()
    process.wait(20)
    assert time.monotonic() - began < 10.5
    frozen_in_the_end.signal(signal.SIGCONT)
    carry(run)
    stored = Stored(run, frozen_in_the_end.uri)
    assert (stored.status, stored.points("train/loss")) == ("FINISHED", LOSSES[:10])


class _SlowProxy(BaseHTTPRequestHandler):
    """Passes everything on; the first two batches are answered after the client has given up."""

    uri = ""
    batches = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.uri + self.path, body, {"Content-Type": "application/json"})
        self._pass(request)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._pass(Request(self.uri + self.path, body, method="PUT"))

    def do_GET(self) -> None:
        self._pass(Request(self.uri + self.path))

    def _pass(self, request: Request) -> None:
        from urllib.error import HTTPError

        try:
            with urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        if self.path.endswith("log-batch"):
            type(self).batches += 1
            time.sleep(2.0 if self.batches <= 2 else 0)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow_uri(server: Server) -> Iterator[str]:
    _SlowProxy.uri, _SlowProxy.batches = server.uri, 0
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _SlowProxy)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}"
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def test_a_server_slower_than_the_time_out_gets_every_point_once(
    slow_uri: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_TIMEOUT_S", 1.0)
    run = make_run(tmp_path, slow_uri)
    train(run, 0, 30)
    carry(run)
    assert _SlowProxy.batches >= 3
    assert Stored(run, server.uri).points("train/loss") == LOSSES[:30]
