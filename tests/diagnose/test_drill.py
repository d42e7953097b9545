"""drill: each fault on a small configuration, through the command; what it finds wrong; what it leaves alone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.adapters.storage import Storage
from dist_trainer.cli import app
from dist_trainer.config.load import load_config
from dist_trainer.diagnose.drill_plan import Plan
from dist_trainer.diagnose.faults import FAULTS
from dist_trainer.errors import UsageError
from dist_trainer.trials.short_copy import shortened
from tests.faults.ledger import is_whole, record
from tests.launchers.processes import Command
from tests.object_store import bucket, open_storage, s3_endpoint  # noqa: F401
from tests.training_command import CONFIG

pytestmark = [pytest.mark.timeout(300), pytest.mark.faults]
Drill = Callable[..., Command]
QUICK = ["kill-rank", "rotten-checkpoint", "kill-in-save"]


@pytest.fixture
def drill(command: Callable[..., Command], tmp_path: Path) -> Drill:
    """The command on the configuration of tests/test_end_to_end.py, two ranks; it must leave no process."""
    (tmp_path / "run.yaml").write_text(CONFIG)

    def start(*arguments: str, subject: str = "run.yaml", code: int = 0) -> Command:
        words = ["-m", "dist_trainer.cli", "drill", subject, *arguments, "--workers", "2"]
        started = command(*words)
        assert started.finish(timeout_s=280) == code, started.stdout + started.stderr
        return started

    return start


def test_a_run_ends_as_if_nothing_had_happened_whatever_is_done_to_it_and_is_not_touched(
    drill: Drill,
    command: Callable[..., Command],
    tmp_path: Path,
    bucket: str,  # noqa: F811
    open_storage: Callable[..., Storage],  # noqa: F811
) -> None:
    train = command(
        "-m", "dist_trainer.cli", "train", "run.yaml", f"checkpoint.folder={bucket}", "train.epochs=1"
    )
    assert train.finish(timeout_s=60) == 0, train.stderr
    store, before = open_storage(bucket), digest(tmp_path / "runs" / "run")
    saved = store.list()
    names = list(FAULTS) if is_whole() else QUICK
    faults = [word for name in names for word in ("--fault", name)]
    found = json.loads(drill(*faults, "--json", subject="run").stdout)
    assert found["passed"] and found["world_size"] == 2 and found["kept"] is None, found
    results = {result["fault"]: result for result in found["results"]}
    assert sorted(results) == sorted(names)
    for name, result in results.items():
        told = (result["finished"], result["same_weights"], result["same_losses"], result["left_behind"])
        assert told == (True, True, True, []), result
        assert result["attempts"] == (1 if name == "mlflow-down" else 2), result
        record(f"drill: {FAULTS[name].says}", tried=1, lost=0)
    lost = {name: result["steps_lost"] for name, result in results.items()}
    assert (lost["kill-rank"], lost["rotten-checkpoint"]) == (1, 5)
    assert lost["kill-in-save"] == 4
    assert not (tmp_path / "runs" / ".drills").exists() and not list(tmp_path.glob("*.db"))
    assert digest(tmp_path / "runs" / "run") == before
    assert store.list() == saved and not store.list("drills"), (
        "its checkpoints are cleared away, and no others"
    )


def digest(folder: Path) -> str:
    """Of every file below, with its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def test_what_a_checkpoint_cannot_bring_back_is_found(drill: Drill, tmp_path: Path) -> None:
    hooks = "hooks=[{target: tests.diagnose.subjects.Forgetful}]"
    said = drill(hooks, "--fault", "kill-rank", code=1).stdout
    assert (
        "kill-rank          FAILED: finished, and not as the untouched training did: it differs from step"
        in said
    )
    assert "run does not survive kill-rank" in said
    (kept,) = (tmp_path / "runs" / ".drills").iterdir()
    assert f"the drill's runs: runs/.drills/{kept.name}" in said
    assert (kept / "kill-rank" / "attempts.jsonl").is_file(), "there is something to look at"


def test_a_run_that_never_ends_the_same_is_told_from_one_that_a_fault_changed(drill: Drill) -> None:
    random = "data.train.target=tests.diagnose.subjects.ByTheClock"
    said = drill(random, "--fault", "exception", code=1).stdout
    assert "cannot be judged: two untouched trainings differ from each other" in said


def test_a_run_that_does_not_train_is_told_in_its_own_words(drill: Drill, tmp_path: Path) -> None:
    refused = drill("model.target=tests.training.recipes.Nett", "--fault", "kill-rank", code=1)
    assert "the run itself does not train" in refused.stderr and "Nett" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "runs" / ".drills").exists()


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["drill", *words])


def test_the_faults_are_listed_each_with_a_sentence() -> None:
    lines = invoke("--list").output.splitlines()
    assert len(lines) == len(FAULTS) == 10 and all(len(line) <= 80 for line in lines)
    assert json.loads(invoke("--list", "--json").output)["kill-rank"] in lines[0]


def test_what_cannot_be_drilled_is_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)

    def refusal(*words: str) -> str:
        done = invoke(*words)
        assert done.exit_code == 2, done.output
        return str(done.output).strip()

    assert refusal() == "drill needs a run or a configuration; --list shows the faults"
    assert "there is no fault 'kill-rnak'; did you mean kill-rank" in refusal(
        "run.yaml", "--fault", "kill-rnak"
    )
    assert "no run 'runn'" in refusal("runn")
    assert refusal("run.yaml", "--steps", "3") == "--steps must be at least 6, for two checkpoints, got 3"
    assert not (tmp_path / "runs" / ".drills").exists()


def test_a_short_training_keeps_what_decides_the_numbers_and_leaves_out_what_takes_time(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    words = ["checkpoint.folder=s3://bucket/here/", "train.eval_every_steps=3", "checkpoint.keep_best={}"]
    config = load_config([tmp_path / "run.yaml"], words).config
    tree = shortened(config, "kill-rank", 12, 4)
    assert (tree["name"], tree["seed"], tree["data"]["global_batch_size"]) == ("kill-rank", 3, 14)
    assert (
        tree["train"]["steps"] == 12
        and tree["train"]["accumulate_steps"] == 2
        and tree["data"]["val"] is None
    )
    assert (
        tree["checkpoint"]["folder"] == "s3://bucket/here/drills" and tree["checkpoint"]["keep_best"] is None
    )
    assert tree["tracking"]["uri"] is None and tree["launch"]["max_restarts"] == 3
    assert tree["scheduler"]["warmup_steps"] == 5
    with pytest.raises(UsageError, match="at least 6"):
        Plan(config, tmp_path, tmp_path, steps=5)
