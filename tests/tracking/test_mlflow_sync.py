"""A run and its page in MLflow, against real stores: the same points whatever happens on the way."""

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
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking import follower
from dist_trainer.tracking.follower import carry_once, follow
from dist_trainer.tracking.mlflow_sync import _connect, page_command, start, sync
from dist_trainer.tracking.run_end import RunEnd
from dist_trainer.tracking.sync_state import SyncState
from tests.tracking.servers import CONFIG, Server, Stored, finish, make_run, train, wait_until

# MLflow's own store, opened in this process
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
LOSSES = [(step, 1 / (step + 1)) for step in range(100_000)]


def carry(run: RunFolder) -> int:
    """As `sync` does, without the seconds that a process takes to import mlflow."""
    problem, sent = carry_once(run, connect=_connect)
    assert problem == ""
    return sent


def log(run: RunFolder) -> str:
    return (run.path / "logs" / "mlflow-sync.log").read_text()


@pytest.fixture
def run(server: Server, tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, server.uri)


def checkpoint(run: RunFolder, name: str, content: bytes) -> None:
    folder = run.checkpoints / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "COMMIT.json").touch()


def test_a_run_is_followed_to_its_end(run: RunFolder, server: Server) -> None:
    run.write_status(Status("running"))
    process = start(run, sample_every_s=0.5)
    assert process is not None
    train(run, 0, 60, pause_s=0.05)
    checkpoint(run, "step-000000060-f0001", b"weights" * 1000)
    finish(run)
    assert process.wait(40) == 0
    stored = Stored(run, server.uri)
    assert stored.status == "FINISHED"
    assert stored.points("train/loss") == LOSSES[:60]
    assert stored.points("samples_per_s") == [(step, 101.0) for step in range(60)]
    assert 0 <= stored.points("system/cpu_percent")[-1][1] <= 100
    assert 0 < stored.points("system/memory_gb")[-1][1] < 10_000
    assert stored.params["optimizer.lr"] == "0.05"
    assert stored.text("config.yaml") == run.config_path.read_text()
    assert set(stored.files()) == {"config.yaml", "code.json"}
    assert stored.files("model") == {"model/model.safetensors": 7000}
    assert stored.tags["dist_trainer.checkpoint"] == "step-000000060-f0001"
    assert page_command(run).startswith(f"{server.uri}/#/experiments/")
    assert page_command(run).endswith(stored.run.info.run_id)


def test_sync_carries_what_is_left_and_reports_it(run: RunFolder, server: Server) -> None:
    train(run, 0, 1500)
    finish(run, "stopped", "signal SIGUSR2")
    report = sync(run)
    assert (report.sent, report.left, report.problem) == (3000, 0, "")
    assert report.url == page_command(run)
    stored = Stored(run, server.uri)
    assert stored.points("train/loss") == LOSSES[:1500]
    assert (stored.status, stored.tags["dist_trainer.reason"]) == ("KILLED", "signal SIGUSR2")
    assert carry(run) == 0


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("finished", "FINISHED"),
        ("stopped", "KILLED"),
        ("failed", "FAILED"),
        ("do-not-requeue", "FAILED"),
        ("running", "KILLED"),  # and nobody is training it
        ("new", "RUNNING"),
    ],
)
def test_each_end_is_told_in_mlflows_words(run: RunFolder, server: Server, state: str, status: str) -> None:
    train(run, 0, 2)
    finish(run, state)
    carry(run)
    assert Stored(run, server.uri).status == status


def test_a_run_that_somebody_trains_is_left_running(run: RunFolder, server: Server) -> None:
    run.write_status(Status("running"))
    with run.lock():
        carry(run)
    assert Stored(run, server.uri).status == "RUNNING"


def test_attempts_share_one_run_and_a_rewind_doubles_nothing(run: RunFolder, server: Server) -> None:
    train(run, 0, 40)
    finish(run, "stopped")
    carry(run)
    train(run, 25, 60, attempt=2)
    process = start(run)  # status.json still says stopped, for a moment
    assert process is not None
    wait_until(lambda: Stored(run, server.uri).status == "RUNNING", 40)
    run.write_status(Status("running"))
    finish(run)
    assert process.wait(40) == 0
    stored = Stored(run, server.uri)
    assert stored.status == "FINISHED"
    assert stored.points("train/loss") == LOSSES[:60]
    assert stored.points("samples_per_s") == [(step, 101.0 if step < 40 else 102.0) for step in range(60)]


def test_a_changed_parameter_is_a_tag_and_a_line_and_stops_nothing(
    run: RunFolder, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    carry(run)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("lr: 0.05", "lr: 0.1, nesterov: true"))
    carry(run)
    stored = Stored(run, server.uri)
    assert stored.params["optimizer.lr"] == "0.05"
    assert stored.params["optimizer.nesterov"] == "true"
    assert stored.tags["changed.optimizer.lr"] == "0.05 -> 0.1"
    assert "optimizer.lr changed: 0.05 -> 0.1" in capfd.readouterr().err
    assert "nesterov" in stored.text("config.yaml")


@pytest.mark.parametrize("forgotten", [["mlflow-sync.json"], ["mlflow-sync.json", "run.json"]])
def test_a_crash_before_anything_was_noted_doubles_nothing(
    run: RunFolder, server: Server, forgotten: list[str]
) -> None:
    train(run, 0, 20)
    finish(run)
    carry(run)
    (run.path / "mlflow-sync.json").unlink()
    if "run.json" in forgotten:  # the answer to the creation was lost
        run.update_info(mlflow_run_id=None)
    assert carry(run) == 40
    assert Stored(run, server.uri).points("train/loss") == LOSSES[:20]


def test_another_store_gets_everything_again(run: RunFolder, tmp_path: Path) -> None:
    train(run, 0, 20)
    carry(run)
    other = f"sqlite:///{tmp_path}/other.db"
    run.config_path.write_text(CONFIG.format(uri=other, name="mine"))
    assert carry(run) == 40
    assert Stored(run, other).points("train/loss") == LOSSES[:20]


def test_every_float_arrives_and_no_name_is_refused(run: RunFolder, server: Server) -> None:
    from dist_trainer.tracking.journal import Journal

    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        for step, value in enumerate([float("nan"), float("inf"), -float("inf"), 1e-310, -0.0, 1e308]):
            journal.metrics(step, {"val/top@5": value, "a//b": 1})
    carry(run)
    (key,) = (key for key in Stored(run, server.uri).run.data.metrics if key.startswith("val/top_5-"))
    points = Stored(run, server.uri).points(key)
    assert len(points) == 6
    assert points[0][1] != points[0][1]
    assert points[1][1] > 1e308 > -1e308 > points[2][1]


def test_no_secret_reaches_the_store(server: Server, tmp_path: Path) -> None:
    secrets = 'data: {{train: {{url: "https://u:canary-a@h/x?key=canary-b", password: canary-c}}}}'
    config = f"{CONFIG}{secrets}\n"
    run = make_run(tmp_path, server.uri, config=config)
    finish(run, "failed", "cannot read https://u:canary-d@h/x")
    carry(run)
    stored = [path.read_bytes() for path in server.folder.rglob("*") if path.is_file()]
    assert any(run.info().run_id.encode() in content for content in stored)
    assert not any(b"canary" in content for content in stored)


def test_runs_that_start_at_once_share_one_new_experiment(server: Server, tmp_path: Path) -> None:
    config = CONFIG.replace("experiment: tests", "experiment: at once")
    runs = [make_run(tmp_path, server.uri, name=f"run-{n}", config=config) for n in range(6)]
    threads = [threading.Thread(target=carry, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({SyncState.load(run).experiment for run in runs}) == 1
    assert all(Stored(run, server.uri).status == "RUNNING" for run in runs)


@pytest.mark.timeout(120)
def test_runs_that_start_at_once_on_a_new_sqlite_file_create_it_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "sqlite:///new/mlflow.db", name=f"run-{n}") for n in range(2)]
    for run in runs:
        train(run, 0, 5)
        checkpoint(run, "step-000000005-f0001", b"w")
        run.write_status(Status("running"))
    processes = [start(run) for run in runs]
    for run in runs:
        finish(run)
    assert [process.wait(100) for process in processes if process] == [0, 0]
    for run in runs:
        stored = Stored(run, f"sqlite:///{tmp_path}/new/mlflow.db")
        assert (stored.status, stored.points("train/loss")) == ("FINISHED", LOSSES[:5]), log(run)
        assert stored.files("model") == {"model/model.safetensors": 1}
        assert stored.run.info.artifact_uri.startswith(f"file://{tmp_path}/new/mlartifacts/tests/")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}
    assert page_command(runs[0]).endswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/new/mlflow.db")


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


def test_without_mlflow_there_is_nothing_to_start(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x", config="name: {name}\ntracking: {{uri: null}}\n")
    assert start(run) is None
    assert page_command(run) == ""
    with pytest.raises(UsageError, match=r"tracking\.uri is null"):
        sync(run)


def test_only_the_process_itself_imports_mlflow() -> None:
    code = "import sys, dist_trainer.tracking.mlflow_sync; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
