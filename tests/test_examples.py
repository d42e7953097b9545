"""Each example under configs/ is trained to its goal, by `make examples`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from dist_trainer.data import Windows, sine
from tests import real_data

PROJECT = Path(__file__).resolve().parent.parent

Files = Callable[[], dict[str, Path]]


@dataclass(frozen=True)
class Example:
    """A configuration, the real files it reads by dotted key, and what it must reach."""

    config: str
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)
    files: Files = dict
    overrides: tuple[str, ...] = ()


def paths(make: Callable[[], Path], key: str = "path") -> Files:
    return lambda: {f"data.{split}.{key}": make() for split in ("train", "test")}


def pretrained() -> dict[str, Path]:
    return paths(real_data.cifar10)() | {"model.weights": real_data.mobilenet_v2()}


MOBILENET = ("model.architecture=mobilenet_v2",)

EXAMPLES = [
    Example("quickstart", {"test/accuracy": 0.95}),
    Example("linear_regression", at_most={"test/loss": 1e-4}),
    Example("mnist_mlp", {"test/accuracy": 0.97}, files=paths(real_data.mnist)),
    Example("csv_classifier", {"test/accuracy": 0.95}, files=paths(real_data.breast_cancer)),
    Example("sine_lstm", at_most={"test/loss": 1e-4}),
    # repeating the year before costs 0.65, the mean of all years before more than 1
    Example("sunspots_lstm", at_most={"test/loss": 0.3}, files=paths(real_data.sunspots, "series")),
    Example("cifar10_cnn_fast", {"test/accuracy": 0.62}, files=paths(real_data.cifar10)),
    Example("cifar10_cnn", {"test/accuracy": 0.58}, files=paths(real_data.cifar10)),
    Example("transfer_frozen", files=pretrained, overrides=MOBILENET),
    Example("transfer_finetune", files=pretrained, overrides=MOBILENET),
]
BY_NAME = {example.config: example for example in EXAMPLES}
LOOKED_AT = (
    "linear_regression",
    "sine_lstm",
    "transfer_frozen",
    "transfer_finetune",
)  # more than their figures


def test_every_configuration_is_an_example() -> None:
    assert {example.config for example in EXAMPLES} == {
        path.stem for path in (PROJECT / "configs").glob("*.yaml")
    }


@pytest.mark.examples
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("config", [name for name in BY_NAME if name not in LOOKED_AT])
def test_an_example_reaches_its_goal(config: str, tmp_path: Path) -> None:
    reach_goal(config, tmp_path)


@pytest.mark.examples
@pytest.mark.timeout(300)
def test_the_line_is_found(tmp_path: Path) -> None:
    reach_goal("linear_regression", tmp_path)
    model = load_file(last_checkpoint(tmp_path, "linear-regression") / "model.safetensors")
    assert model["weight"].item() == pytest.approx(2, abs=0.02)
    assert model["bias"].item() == pytest.approx(1, abs=0.1)


@pytest.mark.examples
@pytest.mark.timeout(300)
def test_the_forecast_of_the_sine_is_drawn(tmp_path: Path) -> None:
    reach_goal("sine_lstm", tmp_path)
    dist_trainer(["predict", "sine-lstm", "--output", "forecast.npz"], tmp_path)
    with np.load(tmp_path / "forecast.npz") as file:
        forecast = next(file[name] for name in file if file[name].shape == (50, 1))
    actual = Windows(sine(200), length=10, test_points=50, split="test")
    assert len(actual) == 50
    assert np.square(forecast[:, 0] - np.sin(np.arange(150, 200) * 0.1)).mean() <= 1e-4
    assert (tmp_path / "runs" / "sine-lstm" / "plots" / "forecast.png").stat().st_size > 1000


@pytest.mark.examples
@pytest.mark.timeout(1500)
def test_pretrained_layers_help_frozen_and_more_when_they_are_trained_too(tmp_path: Path) -> None:
    given = arguments(BY_NAME["transfer_frozen"])
    frozen = train("transfer_frozen", given, tmp_path)
    random = train("transfer_frozen", [*given, "model.weights=null", "name=random"], tmp_path)
    tuned = train("transfer_finetune", arguments(BY_NAME["transfer_finetune"]), tmp_path)
    assert frozen["test/accuracy"] >= random["test/accuracy"] + 0.3
    assert tuned["test/accuracy"] > frozen["test/accuracy"]


def reach_goal(config: str, folder: Path) -> None:
    example = BY_NAME[config]
    results = train(config, arguments(example), folder)
    for name, least in example.at_least.items():
        assert results[name] >= least, results
    for name, most in example.at_most.items():
        assert results[name] <= most, results
    drawn = [path.name for path in folder.glob("runs/*/plots/*")]
    assert drawn == (["forecast.png"] if "lstm" in config else [])


def arguments(example: Example) -> list[str]:
    files = [f"{key}={path}" for key, path in example.files().items()]
    return [*files, *example.overrides]


def train(config: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """Train in a folder of the test's own; gives the run's results."""
    output = dist_trainer(
        ["train", str(PROJECT / "configs" / f"{config}.yaml"), *overrides, "--json"], folder
    )
    report = json.loads(output)
    print(f"{config}: {report['results']}")
    results: dict[str, float] = report["results"]
    return results


def dist_trainer(words: list[str], folder: Path) -> str:
    command = [sys.executable, "-m", "dist_trainer.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def last_checkpoint(folder: Path, name: str) -> Path:
    return max((folder / "runs" / name / "checkpoints").glob("step-*"))
