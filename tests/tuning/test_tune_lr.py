"""The command `tune lr` on real ranks: what it finds and shows, what it refuses, what it leaves."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.tracking.heartbeat import read_heartbeat
from dist_trainer.tuning.find import Found
from dist_trainer.tuning.plot import write_plot
from dist_trainer.tuning.range_test import Rates, curve_of
from dist_trainer.tuning.screen import show
from dist_trainer.tuning.trial import Trained
from tests.launchers.processes import Command, wait_for

CONFIG = """
name: digits
model: {target: dist_trainer.models.MLP, sizes: [64, 32, 10]}
data:
  train: {target: dist_trainer.data.Digits, split: train}
  test: {target: dist_trainer.data.Digits, split: test}
  split: {val: 0.1}
  global_batch_size: 64
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 7.0, momentum: 0.9, groups: [{match: "*.bias", lr_scale: 2.0}]}
scheduler: {target: torch.optim.lr_scheduler.CosineAnnealingLR, warmup_steps: 5}
hooks: [{target: no_such_module.Hook}]
train: {epochs: 2, accumulate_steps: 2}
checkpoint: {folder: store}
launch: {device: cpu, workers_per_node: 2}
"""
pytestmark = pytest.mark.timeout(120)


def tune(folder: Path, *arguments: str, code: int = 0) -> Command:
    words = ["-m", "dist_trainer.cli", "tune", "lr", "run.yaml", *arguments]
    command = Command(sys.executable, *words, folder=folder, environment={"COLUMNS": "80"})
    try:
        assert command.finish(timeout_s=100) == code, command.stdout + command.stderr
    finally:
        command.end()
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "run.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """More steps than an epoch has: 1,293 rows are 21 of them."""
    result: dict[str, Any] = json.loads(tune(folder, "--min", "1e-3", "--steps", "40", "--json").stdout)
    return result


def test_a_rate_is_suggested_with_the_line_to_paste(found: dict[str, Any], folder: Path) -> None:
    assert 0.003 < found["lr"] < 0.3
    assert found["lr"] == pytest.approx(found["lowest_at"] / 10, rel=0.05)
    section = yaml.safe_load(found["line"])["optimizer"]
    assert section == found["optimizer"]
    assert section["momentum"] == 0.9 and section["groups"] == [{"match": "*.bias", "lr_scale": 2.0}]


def test_the_curve_begins_where_the_loss_of_ten_classes_does(found: dict[str, Any]) -> None:
    points = found["points"]
    assert points[0]["lr"] == pytest.approx(1e-3) and points[0]["loss"] == pytest.approx(2.3, abs=0.3)
    assert min(point["smoothed"] for point in points) < 1.9
    cost = found["cost"]
    assert (
        cost["world_size"] == 2 and cost["steps"] == len(points) + 1 and cost["samples"] == 64 * cost["steps"]
    )


def test_nothing_is_left(found: dict[str, Any], folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["run.yaml"], "no run, no tracking, no checkpoints"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.examples)],
    ids=lambda number: number.name,
)
def test_a_test_that_is_stopped_while_it_trains_leaves_no_process_and_no_file(
    number: signal.Signals, folder: Path
) -> None:
    words = ["-m", "dist_trainer.cli", "tune", "lr", "run.yaml", "--steps", "100000", "--min", "1e-6"]
    command = Command(sys.executable, *words, folder=folder)
    try:
        wait_for(lambda: trains(folder), what="a step")
        command.send_to_group(number) if number is signal.SIGINT else command.send(number)
        code = command.finish()
        assert (code, command.stderr) == (1, "stopped before there was a curve; nothing is kept\n")
        assert command.stdout.startswith("training 100001 steps with 2 ranks")
        assert wait_for(lambda: not command.others(), what="no process is left")
    finally:
        command.end()
    assert [path.name for path in folder.iterdir()] == ["run.yaml"]


def trains(folder: Path) -> bool:
    """Whether a rank has done a step."""
    beats = (read_heartbeat(path) for path in folder.glob("runs/.tuning/*/*/heartbeat/rank-*"))
    return any(beat is not None and beat.trained_step for beat in beats)


@pytest.mark.examples
def test_the_curve_is_the_same_again_and_with_one_rank_nearly(found: dict[str, Any], folder: Path) -> None:
    options = ("--min", "1e-3", "--steps", "40", "--json")
    again = json.loads(tune(folder, *options).stdout)
    assert again["points"] == found["points"]
    alone = json.loads(tune(folder, *options, "--workers", "1").stdout)
    for mine, theirs in zip(alone["points"][:20], found["points"][:20], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.examples
def test_what_cannot_be_tuned_is_told(folder: Path) -> None:
    (folder / "odd_loss.py").write_text(
        "def loss(output, target):\n    return (output.sum(1) * float('nan')).mean()\n"
    )
    said = tune(folder, "--steps", "20", "loss={target: odd_loss.Loss}", code=2).stderr
    assert "command line: loss.target cannot be imported" in said
    (folder / "odd_loss.py").write_text(
        "class Loss:\n    def __call__(self, output, target):\n        return output.mean() * float('nan')\n"
    )
    said = tune(folder, "--steps", "20", "loss={target: odd_loss.Loss}", code=1).stderr
    assert said.startswith("the loss of the first step is nan, before any update")
    said = tune(folder, "--steps", "20", "optimizer.groups=[{match: nothing}]", code=2).stderr
    assert "a short copy of it does not train:" in said and "matches no parameter" in said
    for left in ("odd_loss.py", "__pycache__"):
        path = folder / left
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def drawn() -> Iterator[Found]:
    """A curve that falls to 0.1 and rises."""
    tried = Rates(1e-6, 10.0, 100)
    losses = [2.0 - 1.9 / (1 + (step - 70) ** 2 / 50) for step in range(101)]
    optimizer = {"target": "torch.optim.SGD", "lr": 0.0088, "momentum": 0.9}
    yield Found("run", tried, curve_of(tried, losses), Trained(losses, 2, 4.2), 0.0088, optimizer, 32)


def test_it_is_shown_within_eighty_columns(drawn: Found) -> None:
    console = Console(width=80, file=StringIO())
    show(drawn, console)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "optimizer: {target: torch.optim.SGD, lr: 0.0088, momentum: 0.9}"
    (lowest,) = [line for line in lines if line.endswith("lowest")]
    (suggested,) = [line for line in lines if line.endswith("suggested")]
    assert float(lowest.split()[0]) == pytest.approx(10 * float(suggested.split()[0]), rel=0.2)
    words = " ".join(" ".join(lines).split())
    assert "it cost 101 steps of 32 samples with 2 ranks, 4.2 s, and nothing of it is kept" in words


def test_a_picture_is_drawn(drawn: Found, tmp_path: Path) -> None:
    write_plot(drawn, tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "lr.svg"], "--plot must end in .png"),
        (["--steps", "5"], "--steps must be at least 20"),
        (["--min", "1", "--max", "0.1"], "less than --max"),
    ],
)
def test_what_is_wrong_with_the_options_is_said_before_anything_is_trained(
    options: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, ["tune", "lr", "nosuch.yaml", *options])
    assert done.exit_code == 2 and words in done.stderr
