"""What goes wrong beside a run: MLflow or the process that carries it is killed, frozen, late, slow or not alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dist_trainer.adapters.file_lock import hold
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking import follower
from dist_trainer.tracking.follower import carry_once, follow
from dist_trainer.tracking.mlflow_sync import reach, start
from dist_trainer.tracking.run_end import RunEnd
from dist_trainer.tracking.sync_state import SyncState
from tests.launchers.processes import wait_for
from tests.tracking.servers import (
    LOSSES,
    Server,
    Stored,
    carry,
    checkpoint,
    finish,
    log,
    make_run,
    train,
)
from tests.tracking.slow_proxy import SlowProxy

# MLflow's own store, opened in this process
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.faults,
]


def test_a_second_process_on_one_run_leaves_at_once(run: RunFolder) -> None:
    with hold(run.path / "mlflow-sync.lock", held=lambda owner: AssertionError()):
        problem, sent = carry_once(run, connect=reach)
    assert (problem, sent) == ("another process is carrying this run and goes on by itself", 0)


def follow_as_usual(run: RunFolder, end: RunEnd) -> None:
    follow(run, end, connect=reach, sample_every_s=1.0)


def test_a_process_waits_for_one_of_a_killed_attempt_that_still_drains(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sqlite:///mlflow.db")
    run.write_status(Status("running"))
    end = RunEnd(run, parent=os.getppid(), stale_s=None)
    process = threading.Thread(target=follow_as_usual, args=(run, end))
    with hold(run.path / "mlflow-sync.lock", held=lambda owner: AssertionError()):
        process.start()
        train(run, 0, 5)
        time.sleep(1.5)
        assert process.is_alive()
    wait_for(lambda: SyncState.load(run).offsets.get("rank-0.jsonl"))
    finish(run)
    process.join()
    assert Stored(run, f"sqlite:///{tmp_path}/mlflow.db").points("train/loss") == LOSSES[:5]


def test_a_short_attempt_s_process_waits_for_it_too_after_its_own_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sqlite:///mlflow.db")
    run.write_status(Status("running"))
    end = RunEnd(run, parent=os.getppid(), stale_s=None)
    process = threading.Thread(target=follow_as_usual, args=(run, end))
    with hold(run.path / "mlflow-sync.lock", held=lambda owner: AssertionError()):
        process.start()
        train(run, 0, 5)
        finish(run)
        wait_for(end.seen)
        time.sleep(1.5)
        assert process.is_alive()
    process.join()
    stored = Stored(run, f"sqlite:///{tmp_path}/mlflow.db")
    assert (stored.points("train/loss"), SyncState.load(run).status) == (LOSSES[:5], "FINISHED")


def test_the_process_of_a_killed_attempt_leaves_the_end_to_the_one_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sqlite:///mlflow.db")
    run.write_status(Status("running"))
    with run.lock():
        end = RunEnd(run, parent=-1, stale_s=None)  # no parent is there: it was killed
        assert (end.seen(), end.is_gone_on()) == ("KILLED", False)
    assert not end.is_gone_on(), "nobody trains it yet"
    with run.lock():
        assert end.is_gone_on()
        follow(run, end, connect=reach, sample_every_s=1.0)
    assert not (run.path / "mlflow-sync.json").exists()
    follow(run, end, connect=reach, sample_every_s=1.0)
    assert SyncState.load(run).status == "KILLED"


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
    wait_for(lambda: not pid.exists() or "Z" in (pid / "stat").read_text().split()[2])
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
        wait_for(partial(_has_moved, run, before))
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
    wait_for(lambda: "Connection refused" in log(run))
    fragile_server.start()
    wait_for(lambda: SyncState.load(run).offsets.get("rank-0.jsonl"))
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


@pytest.mark.timeout(90)
def test_a_damaged_final_model_does_not_keep_the_process_for_ever(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sqlite:///mlflow.db")
    train(run, 0, 5)
    checkpoint(run, "step-000000005-f0001", b"weights")
    (run.checkpoints / "step-000000005-f0001" / "model.safetensors").write_bytes(b"weighty")
    run.write_status(Status("running"))
    process = start(run)
    assert process is not None
    finish(run)
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert "the final model cannot be read" in log(run)
    stored = Stored(run, f"sqlite:///{tmp_path}/mlflow.db")
    assert (stored.status, stored.points("train/loss")) == ("FINISHED", LOSSES[:5])
    assert not stored.files("model")


@pytest.fixture
def frozen_in_the_end(server: Server) -> Iterator[Server]:
    yield server
    server.signal(signal.SIGCONT)


@pytest.mark.timeout(120)
def test_a_server_that_is_frozen_at_the_end_is_left_and_loses_no_point(
    run: RunFolder, frozen_in_the_end: Server
) -> None:
    run.write_status(Status("running"))
    process = start(run)
    assert process is not None
    train(run, 0, 5)
    wait_for(lambda: SyncState.load(run).artifacts.get("code.json"))
    frozen_in_the_end.signal(signal.SIGSTOP)
    train(run, 5, 10)
    finish(run)
    assert process.wait(60) == 0
    assert "MLflow is silent; `dist-trainer sync` carries what is left" in log(run)
    frozen_in_the_end.signal(signal.SIGCONT)
    carry(run)
    stored = Stored(run, frozen_in_the_end.uri)
    assert (stored.status, stored.points("train/loss")) == ("FINISHED", LOSSES[:10])


@pytest.fixture
def slow_proxy(server: Server) -> Iterator[SlowProxy]:
    """The first two batches are answered after the client has given up."""
    with SlowProxy(server.uri, delay_s=lambda batch: 2.0 if batch <= 2 else 0).serving() as proxy:
        yield proxy


def test_a_server_slower_than_the_time_out_gets_every_point_once(
    slow_proxy: SlowProxy, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_TIMEOUT_S", 1.0)
    run = make_run(tmp_path, slow_proxy.uri)
    train(run, 0, 30)
    carry(run)
    assert slow_proxy.batches >= 3
    assert Stored(run, server.uri).points("train/loss") == LOSSES[:30]
