"""A run and its page in MLflow, against real stores: the same points whatever happens on the way."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.mlflow_sync import start, sync
from dist_trainer.tracking.page import page_command
from dist_trainer.tracking.sync_state import SyncState
from tests.launchers.processes import wait_for
from tests.tracking.servers import (
    CONFIG,
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

# MLflow's own store, opened in this process
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


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
    wait_for(lambda: Stored(run, server.uri).status == "RUNNING")
    run.write_status(Status("running"))
    finish(run)
    assert process.wait(40) == 0
    stored = Stored(run, server.uri)
    assert stored.status == "FINISHED"
    assert stored.points("train/loss") == LOSSES[:60]
    assert stored.points("samples_per_s") == [(step, 101.0 if step < 40 else 102.0) for step in range(60)]


def test_a_run_that_is_run_again_is_scheduled_until_its_next_attempt_runs(
    run: RunFolder, server: Server
) -> None:
    for attempt, cause in enumerate(["SIGUSR2", "time limit"], start=1):
        train(run, 20 * (attempt - 1), 20 * attempt, attempt=attempt)
        run.write_status(Status("running"))
        process = start(run)
        assert process is not None
        wait_for(lambda: run.info().mlflow_run_id and Stored(run, server.uri).status == "RUNNING")
        run.write_status(Status("stopped", cause, 20 * attempt, run_again=True))
        assert process.wait(40) == 0
        stored = Stored(run, server.uri)
        assert (stored.status, stored.tags["dist_trainer.reason"]) == ("SCHEDULED", cause)
    train(run, 40, 60, attempt=3)
    run.write_status(Status("stopped", "SIGTERM or SIGINT", 60))
    carry(run)
    stored = Stored(run, server.uri)
    assert stored.status == "KILLED"
    assert stored.points("train/loss") == LOSSES[:60]


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


def test_without_mlflow_there_is_nothing_to_start(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x", config="name: {name}\ntracking: {{uri: null}}\n")
    assert start(run) is None
    assert page_command(run) == ""
    with pytest.raises(UsageError, match=r"tracking\.uri is null"):
        sync(run)


def test_only_the_process_itself_imports_mlflow() -> None:
    code = "import sys, dist_trainer.tracking.mlflow_sync; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
