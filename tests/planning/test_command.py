"""The command, on the quickstart and on what cannot be planned; what it leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.config.load import load_config
from dist_trainer.errors import ConfigError, DistTrainerError, UsageError
from dist_trainer.planning.trial import measure
from tests.launchers.processes import Command
from tests.training_command import CONFIG

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
pytestmark = pytest.mark.timeout(120)
Plan = Callable[..., Command]


@pytest.fixture
def plan(command: Callable[..., Command]) -> Plan:
    """The command; it must leave no process."""

    def start(*arguments: str | Path, code: int = 0) -> Command:
        started = command("-m", "dist_trainer.cli", "plan", *arguments)
        assert started.finish(timeout_s=100) == code, started.stdout + started.stderr
        return started

    return start


def test_the_quickstart_is_measured_and_planned_and_nothing_is_left(plan: Plan, tmp_path: Path) -> None:
    options = ("--steps", "8", "--plot", "plan.png", "--workers", "2", "--json")
    found = json.loads(plan(QUICKSTART, *options).stdout)
    assert [row["nodes"] for row in found["rows"]] == [2**power for power in range(11)]
    measured = found["measured"]
    assert measured["gradient_bytes"] == 4 * ((64 + 1) * 256 + (256 + 1) * 128 + (128 + 1) * 10)
    assert [phases["rows"] for phases in measured["phases"]] == [16]
    assert measured["dataset_rows"] == 1293 and measured["device"] == "cpu"
    parts = measured["phases"][0]
    assert all(parts[name]["wall_s"] > 0 for name in ("between", "forward", "backward", "update"))
    assert measured["save"]["size_bytes"] > 3 * measured["gradient_bytes"], "AdamW keeps two numbers for each"
    assert measured["save"]["stall_s"] > 0 and measured["save"]["total_s"] > 0
    first = found["rows"][0]["forecast"]
    assert first["step_s"] == pytest.approx(first["compute_s"] + first["exposed_s"])
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"], "no run, no tracking, no checkpoints"


def test_micro_batches_buffers_a_store_and_a_smaller_step_are_measured_too(
    plan: Plan, tmp_path: Path
) -> None:
    """The configuration of tests/test_end_to_end.py, with a batch norm, a hook and loaders."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    options = ("--steps", "4", "--workers", "2", "--keep-global-batch", "--nodes", "1,2,16", "--json")
    found = json.loads(plan("run.yaml", "checkpoint.folder=store", *options).stdout)
    measured = found["measured"]
    assert [phases["rows"] for phases in measured["phases"]] == [7, 1]
    assert measured["micro_batches"] == 2 and measured["buffer_bytes"] > 0
    assert [row["forecast"] is None for row in found["rows"]] == [False, False, True]
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("store/**/COMMIT.json"))


def test_what_the_configuration_names_wrongly_is_told_with_its_line(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG.replace("recipes.Net}", "recipes.Nett}"))
    said = plan("run.yaml", "--workers", "2", code=2)
    assert said.stderr.startswith("run.yaml:4: model.target cannot be imported: ")
    assert not (tmp_path / "runs").exists()


def test_a_training_that_fails_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "run.yaml").write_text(CONFIG)
    runs = tmp_path / "runs"
    loaded = load_config([tmp_path / "run.yaml"], ["data.num_workers=0", "optimizer.lr=1e30"])
    with pytest.raises(
        DistTrainerError, match=r"one rank of it does not train:\n(.*\n)*.*gradient is not finite"
    ):
        measure(loaded, [7], workers=2, runs=runs)
    with pytest.raises(
        UsageError, match="--steps must be at least 4, for medians that mean something, got 3"
    ):
        measure(loaded, [7], workers=2, runs=runs, steps=3)
    groups = ["optimizer.groups=[{match: nothing, lr_scale: 2}]"]
    with pytest.raises(ConfigError, match="matches no parameter"):
        measure(load_config([tmp_path / "run.yaml"], groups), [7], workers=2, runs=runs)
    assert not runs.exists()


def test_what_is_wrong_with_the_options_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    def refused(*options: str) -> Any:
        done = CliRunner().invoke(app, ["plan", str(QUICKSTART), *options])
        assert done.exit_code == 2
        return done.stderr

    assert "got '1,2,...'" in refused("--nodes", "1,2,...")
    assert "--bandwidth must be more than 0" in refused("--bandwidth", "0")
    assert "--plot must end in .png" in refused("--plot", str(tmp_path / "plan.svg"))
    assert "--steps must be at least" in refused("--steps", "1")
