"""The train command: which run goes on, which is refused, and what is said at the end."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command, wait_for

pytestmark = pytest.mark.timeout(60)
Train = Callable[..., Command]
CONFIG = """
name: NAME
model: {target: torch.nn.Linear, in_features: 2, out_features: 1}
data:
  train: {target: torch.utils.data.TensorDataset}
  global_batch_size: 4
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
train: {epochs: 1}
tracking: {uri: null}
"""


@pytest.fixture
def train(command: Callable[..., Command], tmp_path: Path) -> Train:
    """The train command on a small configuration, with one of our entries as the worker."""
    script = Path(__file__).with_name("train_command.py")

    def start(*arguments: str, entry: str = "train_a_little", name: str = "small") -> Command:
        (tmp_path / "config.yaml").write_text(CONFIG.replace("NAME", name))
        return command(script, entry, "config.yaml", *arguments)

    return start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small"


def finished(command: Command, code: int = 0) -> Command:
    assert command.finish() == code, command.stdout + command.stderr
    return command


def test_a_run_is_created_trained_and_shown_and_a_longer_one_goes_on(train: Train, folder: Path) -> None:
    command = finished(train())
    assert "training 4 steps with 2 ranks on cpu" in command.stdout
    assert "step 4: val/accuracy 0.9" in command.stdout
    assert "small: finished at step 4" in command.stdout
    assert "0.9375" in command.stdout
    assert f"checkpoints  {folder}/checkpoints" in command.stdout
    assert command.stderr == ""
    again = finished(train())
    assert "run small is finished" in again.stdout
    assert RunFolder.open(folder).highest_fence() == 1
    longer = finished(train("train.epochs=2"))
    assert "going on at step 4 of 8 steps with 2 ranks on cpu" in longer.stdout


def test_json_is_one_object_and_nothing_else(train: Train, folder: Path) -> None:
    found = json.loads(finished(train("--json")).stdout)
    assert found["run"] == "small"
    assert found["folder"] == str(folder)
    assert (found["state"], found["exit_code"], found["step"]) == ("finished", 0, 4)
    assert found["results"] == {"test/accuracy": 0.9375, "val/accuracy": 0.9}
    assert found["checkpoints"] == f"{folder}/checkpoints"
    assert found["mlflow"] is None


def test_a_failure_is_shown_once_with_its_log(train: Train, folder: Path) -> None:
    failed = finished(train(entry="fails_alike"), 1)
    lines = [re.sub(r":\d+,", ":N,", line) for line in failed.stderr.splitlines()]
    assert lines == [
        "rank 0 failed at step 3: ValueError: always the same (entries.py:N, in fails_alike)",
        f"its log: {folder}/logs/attempt-0002/rank-0.log",
        "dist-trainer explain small tells more",
    ]
    assert "Traceback" not in failed.stdout
    assert RunFolder.open(folder).read_status().state == "failed"


def test_a_target_that_does_not_exist_is_named_before_anything_is_created(train: Train, folder: Path) -> None:
    command = finished(train("model.target=torch.nn.Linaer"), 2)
    assert "Linaer" in command.stderr and "Linear" in command.stderr
    assert "Traceback" not in command.stderr
    assert not folder.exists()


def test_another_command_is_refused_and_an_interrupt_says_where_it_saved(
    train: Train, tmp_path: Path
) -> None:
    slow = tmp_path / "runs" / "slow"
    first = train("train.epochs=2", name="slow")
    wait_for(lambda: (slow / "heartbeat" / "rank-1").exists())
    second = finished(train("train.epochs=2", name="slow"), 2)
    assert f"pid {first.pid}" in second.stderr
    first.send_to_group(signal.SIGINT)
    finished(first, 75)
    step = RunFolder.open(slow).read_status().step
    assert step
    assert f"saved at step {step}; the same command goes on from there" in first.stdout


def test_a_signal_that_comes_after_the_end_changes_no_exit_code(train: Train) -> None:
    command = finished(train("--signals-afterwards"))
    assert "small: finished at step 4" in command.stdout
    assert command.stderr == ""


def test_an_early_stop_says_how_to_go_on(train: Train, folder: Path) -> None:
    settings = ["train.epochs=2", "data.val.target=torch.utils.data.TensorDataset"]
    finished(train(*settings, "train.early_stopping.patience=2"))
    run = RunFolder.open(folder)
    run.write_status(replace(run.read_status(), step=3))
    again = finished(train(*settings, "train.early_stopping.patience=2"))
    assert "run small was ended by early stopping at step 3" in again.stdout
    assert "train.early_stopping.patience or train.early_stopping=null goes on" in again.stdout
    finished(train(*settings, "train.early_stopping.patience=5"))
    assert "patience: 5" in run.config_path.read_text()
    assert run.highest_fence() == 2


def test_an_interrupt_before_the_workers_start_leaves_no_run(train: Train, folder: Path) -> None:
    command = train("--json")
    wait_for(lambda: command.others())
    command.send_to_group(signal.SIGINT)
    found = json.loads(finished(command, 75).stdout)
    assert found == {"run": "small", "state": "stopped", "exit_code": 75, "error": None}
    assert not folder.exists()
