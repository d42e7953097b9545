"""A sweep on this machine, as a user gives it: who fails, who goes on, what is shown and what is resumed."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import read_heartbeat
from tests.launchers.processes import Command, last_object, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.faults]
Sweep = Callable[..., Command]
CODE = """
import time

import torch


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        point = torch.tensor([index / 64, 1.0])
        return point, 2 * point[:1] - 1


class Net(torch.nn.Linear):
    def __init__(self, fail=False, pause_s=0.0):
        super().__init__(2, 1)
        self.fail, self.pause_s = fail, pause_s

    def forward(self, points):
        if self.fail:
            raise ValueError("this one cannot")
        time.sleep(self.pause_s)
        return super().forward(points)
"""
CONFIG = """
name: line
model: {target: lines.Net}
data:
  train: {target: lines.Points}
  val: {target: lines.Points}
  global_batch_size: 8
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
train: {epochs: 1}
launch: {workers_per_node: 1, max_restarts: 0}
tracking: {uri: null}
"""


@pytest.fixture
def sweep(command: Callable[..., Command], tmp_path: Path) -> Sweep:
    """The sweep command, in a folder with a configuration line.yaml and the code that it names."""
    (tmp_path / "lines.py").write_text(CODE)
    (tmp_path / "line.yaml").write_text(CONFIG)

    def start(*words: str) -> Command:
        return command("-m", "dist_trainer.cli", "sweep", *words)

    return start


def ended(command: Command, code: int, timeout_s: float = 100) -> Command:
    assert command.finish(timeout_s) == code, command.stdout + command.stderr
    return command


def cell(folder: Path, index: int, name: str = "line-sweep") -> RunFolder:
    return RunFolder.open(folder / "runs" / f"{name}-{index:04d}")


def states(folder: Path, count: int) -> list[str]:
    return [cell(folder, index).read_status().state for index in range(count)]


def is_training(folder: Path, index: int) -> bool:
    beat = read_heartbeat(cell(folder, index).heartbeat_path(0))
    return bool(beat and beat.step >= 2)


def is_in_its_first_step(folder: Path, index: int) -> bool:
    beat = read_heartbeat(cell(folder, index).heartbeat_path(0))
    return bool(beat and beat.phase == "train")


def shown(command: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended(command, 0).stdout)
    return found


def test_a_failed_cell_fails_nobody_else_and_resume_runs_it_alone(sweep: Sweep, tmp_path: Path) -> None:
    words = [
        "line.yaml",
        "--grid",
        "model.fail=false,true",
        "--grid",
        "seed=0:2",
        "--local",
        "--parallel",
        "2",
    ]
    first = ended(sweep(*words), 1)
    assert states(tmp_path, 4) == ["finished", "finished", "failed", "failed"]
    assert "cell 0 (model.fail=false, seed=0) started" in first.stdout
    assert "cell 1 finished at step 8, val/loss " in first.stdout
    assert re.search("cell 2 failed: rank 0 failed.*ValueError: this one cannot", first.stdout)
    assert "4 cells: 2 finished, 2 failed" in first.stdout
    assert all(len(line) <= 80 for line in first.stdout.splitlines() if line.startswith("   "))
    attempts = cell(tmp_path, 0).attempts()
    (tmp_path / "lines.py").write_text(CODE.replace("if self.fail", "if False"))
    again = ended(sweep("resume", "line-sweep", "--local", "--json"), 0)
    assert [row["state"] for row in json.loads(again.stdout)["cells"]] == ["finished"] * 4
    assert cell(tmp_path, 0).attempts() == attempts
    last = ended(sweep("resume", "line-sweep", "--local"), 0)
    assert "sweep line-sweep is finished: the best of them: dist-trainer sweep best line-sweep" in last.stdout
    best = shown(sweep("best", "line-sweep", "--json"))
    assert (best["metric"], best["mode"]) == ("val/loss", "min")
    values = [row["value"] for row in best["cells"]]
    assert values == sorted(values)
    assert best["cells"][0]["evaluate"].startswith(f"dist-trainer evaluate {best['cells'][0]['run']} ")
    assert Path(best["cells"][0]["checkpoint"], "COMMIT.json").exists()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_a_cell_that_fails_before_its_first_step_is_a_failed_child_in_mlflow(
    sweep: Sweep, tmp_path: Path
) -> None:
    words = ["line.yaml", "tracking.uri=sqlite:///mlflow.db", "--grid", "model.fail=false,true", "--local"]
    ended(sweep(*words, "--parallel", "2"), 1)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    found = {
        run.info.run_name: run
        for run in client.search_runs([client.get_experiment_by_name("default").experiment_id])
    }
    top = found.pop("line-sweep")
    assert top.info.status == "FAILED"
    assert {name: run.info.status for name, run in found.items()} == {
        "line-sweep-0000": "FINISHED",
        "line-sweep-0001": "FAILED",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {top.info.run_id}


def test_ctrl_c_saves_every_cell_and_a_resume_finishes_all(sweep: Sweep, tmp_path: Path) -> None:
    words = [
        "line.yaml",
        "model.pause_s=0.1",
        "train.epochs=3",
        "--grid",
        "seed=0:3",
        "--local",
        "--parallel",
        "2",
    ]
    first = sweep(*words)
    wait_for(lambda: cell_is_there(tmp_path, 1) and is_training(tmp_path, 0) and is_training(tmp_path, 1))
    first.send_to_group(signal.SIGINT)
    ended(first, 75)
    assert states(tmp_path, 3) == ["stopped", "stopped", "new"]
    assert "stopping: 2 running, which save" in first.stdout
    assert "cell 0 stopped, saved at step" in first.stdout
    saved = cell(tmp_path, 0).read_status().step
    again = ended(sweep("resume", "line-sweep", "--local", "--parallel", "3"), 0)
    assert "3 cells: 3 finished" in again.stdout
    starts = [line for line in cell(tmp_path, 0).attempts() if line["event"] == "start"]
    assert [line["first_step"] for line in starts] == [0, saved]


def cell_is_there(folder: Path, index: int) -> bool:
    return (folder / "runs" / f"line-sweep-{index:04d}" / "run.json").exists()


def test_a_second_interrupt_leaves_at_once(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep("line.yaml", "model.pause_s=30", "--grid", "seed=0:2", "--local")
    wait_for(lambda: cell_is_there(tmp_path, 0) and cell(tmp_path, 0).highest_fence() == 1)
    wait_for(lambda: is_in_its_first_step(tmp_path, 0), what="a first step that takes half a minute")
    first.send(signal.SIGINT)
    with pytest.raises(AssertionError):
        wait_for(lambda: first.process.poll() is not None, timeout_s=1.2)
    first.send(signal.SIGINT)
    ended(first, 75, timeout_s=12)


def test_cells_of_a_sweep_that_is_killed_save_and_stop(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep("line.yaml", "model.pause_s=0.1", "train.epochs=5", "--grid", "seed=0:2", "--local")
    wait_for(lambda: cell_is_there(tmp_path, 0) and is_training(tmp_path, 0))
    os.kill(first.pid, signal.SIGKILL)
    first.finish()
    wait_for(lambda: not first.others(), what="the end of the cell")
    assert states(tmp_path, 2) == ["stopped", "new"]


def test_a_cell_killed_without_a_word_is_run_again(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep(
        "line.yaml", "model.pause_s=0.1", "checkpoint.every_steps=1", "--grid", "seed=0:2", "--local"
    )
    wait_for(lambda: cell_is_there(tmp_path, 0) and is_training(tmp_path, 0))
    for pid, line in first.others().items():
        if "sweeps.cell" in line:
            first.kill_other(pid)
    ended(first, 1)
    assert "cell 0 failed: " in first.stdout
    assert states(tmp_path, 2) == ["running", "finished"]
    rows = shown(sweep("status", "line-sweep", "--json"))["cells"]
    assert [row["state"] for row in rows] == ["lost", "finished"]
    ended(sweep("resume", "line-sweep", "--local"), 0)
    assert states(tmp_path, 2) == ["finished", "finished"]


def test_one_cell_alone_and_other_commands_by_its_name(
    sweep: Sweep, command: Callable[..., Command], tmp_path: Path
) -> None:
    ended(sweep("line.yaml", "--grid", "seed=0:3", "--name", "mine", "--only", "1", "--local"), 0)
    assert [cell(tmp_path, index, "mine").read_status().state for index in range(3)] == [
        "new",
        "finished",
        "new",
    ]
    refused = ended(sweep("resume", "mine", "--only", "1", "--local"), 2)
    assert "--only 1: sweep mine has no such cell to run; there is 0, 2" in refused.stderr
    evaluated = command("-m", "dist_trainer.cli", "evaluate", "mine-0001", "--split", "val", "--json")
    assert ended(evaluated, 0) and "val/loss" in str(last_object(evaluated.stdout.replace("\n", " ")))


def test_a_dry_run_makes_nothing(sweep: Sweep, tmp_path: Path) -> None:
    words = [
        "line.yaml",
        "--grid",
        "optimizer.lr=loguniform(1e-3,1e-1)",
        "--random",
        "3",
        "--local",
        "--dry-run",
    ]
    first = ended(sweep(*words), 0)
    assert first.stdout.count("line-sweep-000") == 3
    assert first.stdout.endswith("3 cells for this machine; nothing was made or started\n")
    listed = json.loads(ended(sweep(*words, "--json"), 0).stdout)
    assert [each["run"] for each in listed["cells"]] == [f"line-sweep-000{index}" for index in range(3)]
    assert not (tmp_path / "runs").exists()


def test_the_cores_are_divided_among_cells_beside_each_other(sweep: Sweep, tmp_path: Path) -> None:
    code = CODE + "\nprint('threads:', torch.get_num_threads())\n"
    (tmp_path / "lines.py").write_text(code)
    ended(sweep("line.yaml", "--grid", "seed=0:2", "--local", "--parallel", "2"), 0)
    cores = len(os.sched_getaffinity(0))
    for index in range(2):
        log = cell(tmp_path, index).log_path(1, 0).read_text()
        assert f"threads: {max(1, cores // 2)}" in log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["line.yaml"], "a sweep needs --grid KEY=VALUES"),
        (["statu", "line-sweep"], "sweep statu: there is no such word; did you mean status?"),
        (["status", "nothing"], "no sweep 'nothing'"),
        (
            ["line.yaml", "--grid", "seed=0:2", "--only", "2", "--local"],
            "--only 2: sweep line-sweep has no such",
        ),
        (["nothing.yaml", "--grid", "seed=0:2"], "nothing.yaml: cannot be read"),
    ],
)
def test_a_command_that_means_nothing_is_refused(sweep: Sweep, words: list[str], message: str) -> None:
    assert message in ended(sweep(*words), 2).stderr


def test_the_help_shows_both_forms(sweep: Sweep) -> None:
    for words in ([], ["--help"]):
        text = ended(sweep(*words), 0).stdout
        assert "sweep CONFIG... [KEY=VALUE]... --grid KEY=VALUES [OPTIONS]" in text
        assert "sweep status|resume|best NAME [OPTIONS]" in text
    assert "sweep best [OPTIONS] {NAME}" in ended(sweep("best", "--help"), 0).stdout
