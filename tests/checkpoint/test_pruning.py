"""What prune removes, what it never removes, and what it reads before it removes anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.pruning import carry_out, plan_pruning
from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore
from dist_trainer.cli import app
from dist_trainer.config.schema import BestConfig, CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint
from dist_trainer.run_folder import RunFolder

KEEP = CheckpointConfig(keep_last=2, keep_best=BestConfig(metric="val/loss"), keep_every_steps=40)
STEPS = (10, 20, 30, 40, 50, 60)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Checkpoints at 10, 20, ..., 60, the first one the best."""
    config = "name: run\ncheckpoint: {keep_last: 2, keep_best: {metric: val/loss}, keep_every_steps: 40}\n"
    run = RunFolder.create(tmp_path / "runs" / "run", config, working_folder=tmp_path)
    run.new_fence({})
    fill(open_store(run, CheckpointConfig(), fence=1))
    return run


def fill(store: CheckpointStore) -> None:
    for step in STEPS:
        store.commit(step, {"training.json": b"{%d}" % step}, {"metrics": {"val/loss": float(step)}})


def steps_of(run: RunFolder) -> list[int]:
    return sorted(int(path.parent.name[5:14]) for path in run.checkpoints.glob("*/COMMIT.json"))


def damage(run: RunFolder, step: int) -> None:
    (run.checkpoints / f"step-{step:09d}-f0001" / "training.json").write_bytes(b"rust")


def prune(run: RunFolder, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["checkpoint", "prune", str(run.path), *arguments])


def test_what_the_run_itself_keeps_stays_and_a_dry_run_changes_nothing(run: RunFolder) -> None:
    planned = json.loads(prune(run, "--dry-run", "--json").stdout)
    assert steps_of(run) == list(STEPS) and planned["dry_run"]
    done = json.loads(prune(run, "--json").stdout)
    assert done["removed"] == planned["removed"] and steps_of(run) == [10, 40, 50, 60]
    assert [row["step"] for row in done["removed"]] == [30, 20]
    assert {row["step"]: row["why"] for row in done["kept"]} == {
        60: ["of the last 2"],
        50: ["of the last 2"],
        40: ["a multiple of 40 steps"],
        10: ["best val/loss"],
    }
    assert done["bytes"] == sum(row["bytes"] for row in done["removed"]) > 0
    assert "nothing to remove" in prune(run).stdout


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep-last", "3"], [40, 50, 60]),
        (["--keep-best"], [10, 60]),
        (["--keep-last", "2", "--keep-best"], [10, 50, 60]),
    ],
)
def test_options_stand_in_place_of_all_that_the_run_keeps(
    run: RunFolder, options: list[str], left: list[int]
) -> None:
    assert prune(run, *options).exit_code == 0
    assert steps_of(run) == left


def test_one_that_is_damaged_does_not_count_and_the_next_good_one_stays(run: RunFolder) -> None:
    damage(run, 60)
    damage(run, 10)
    done = prune(run)
    assert done.exit_code == 0, done.stderr
    assert "damaged, and set aside: step-000000060-f0001: " in done.stdout
    assert steps_of(run) == [10, 20, 40, 50, 60], "the best of the good ones, and the last two of them"
    quarantined = {path.parent.name for path in run.checkpoints.glob("*/QUARANTINE.json")}
    assert quarantined == {"step-000000060-f0001", "step-000000010-f0001"}
    assert prune(run, "--quarantined").exit_code == 0
    assert steps_of(run) == [20, 40, 50]


def test_where_none_is_good_nothing_is_removed_not_even_from_quarantine(run: RunFolder) -> None:
    for step in STEPS:
        damage(run, step)
    for options in ((), ("--quarantined",), ("--keep-last", "1")):
        refused = prune(run, *options)
        assert (
            refused.exit_code == NoUsableCheckpoint.exit_code
            and "none of 6 checkpoints is whole" in refused.stderr
        )
    assert steps_of(run) == list(STEPS)


def test_remains_that_were_never_committed_go(run: RunFolder) -> None:
    remains, begun = (run.checkpoints / f"step-{step:09d}-f0001" for step in (55, 70))
    for folder in (remains, begun, run.checkpoints / "notes"):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"12345")
    done = json.loads(prune(run, "--json").stdout)
    assert {"name": remains.name, "step": 55, "why": "never committed", "bytes": 5} in done["removed"]
    assert not remains.exists() and (run.checkpoints / "notes").exists()
    assert begun.exists(), "newer than all that is committed: somebody may be writing it"


def test_the_best_is_not_forgotten_where_its_manifest_cannot_be_read(run: RunFolder) -> None:
    (run.checkpoints / "step-000000010-f0001" / "MANIFEST.json").write_text("rust")
    done = json.loads(prune(run, "--json").stdout)
    assert [row["name"] for row in done["damaged"]] == ["step-000000010-f0001"]
    assert steps_of(run) == [10, 20, 40, 50, 60], "set aside, and the next best stays"


def test_one_that_cannot_be_removed_hides_no_other(run: RunFolder) -> None:
    elsewhere = run.path / "elsewhere"
    (run.checkpoints / "step-000000020-f0001").rename(elsewhere)
    (run.checkpoints / "step-000000020-f0001").symlink_to(elsewhere)
    done = prune(run, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and list(found["failed"]) == ["step-000000020-f0001"]
    assert "step-000000020-f0001 could not be removed: " in done.stderr
    assert steps_of(run) == [10, 20, 40, 50, 60] and (elsewhere / "training.json").exists()


def test_one_in_quarantine_that_was_half_removed_goes_with_the_others(run: RunFolder) -> None:
    damage(run, 60)
    prune(run)
    (run.checkpoints / "step-000000060-f0001" / "COMMIT.json").unlink()
    run.new_fence({})
    open_store(run, KEEP, fence=2).commit(70, {"training.json": b"{}"}, {})
    assert json.loads(prune(run, "--json").stdout)["removed"] == []
    (gone,) = json.loads(prune(run, "--quarantined", "--json").stdout)["removed"]
    assert gone["step"] == 60 and not (run.checkpoints / gone["name"]).exists()


def test_what_a_training_removes_while_it_is_read_is_not_damaged(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(run, KEEP, report=lambda message: None)
    verify = store.verify

    def removed_meanwhile(one: Checkpoint) -> None:
        if one.step == 50:
            store.remove(one)
        verify(one)

    monkeypatch.setattr(store, "verify", removed_meanwhile)
    pruning = plan_pruning(store, KEEP, quarantined=False)
    assert not pruning.damaged and [each.step for each in pruning.kept] == [60, 40, 10]


def test_nothing_goes_while_a_command_trains_the_run(run: RunFolder) -> None:
    with run.lock():
        refused = prune(run, "--keep-last", "1")
    assert refused.exit_code == 2 and "is being trained by pid" in refused.stderr
    assert steps_of(run) == list(STEPS)


def test_all_that_stays_is_read_before_anything_goes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(run, KEEP, fence=1, report=lambda message: None)
    read: list[int] = []
    verify, remove = store.verify, store.remove
    monkeypatch.setattr(store, "verify", lambda one: (read.append(one.step), verify(one)))
    monkeypatch.setattr(store, "remove", lambda one: (read.append(-one.step), remove(one)))
    carry_out(store, plan_pruning(store, KEEP, quarantined=False))
    assert (sorted(read[:4]), read[4:]) == ([10, 40, 50, 60], [-20, -30])


def test_a_run_without_a_best_is_told_so(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "plain", "name: plain\n", working_folder=tmp_path)
    refused = prune(run, "--keep-best")
    assert refused.exit_code == 2 and "no checkpoint.keep_best that says what is best" in refused.stderr
    assert prune(run).exit_code == 0, "nothing is there yet"


def test_it_is_the_same_in_a_store(bucket: str, open_storage: Callable[..., Storage]) -> None:
    store = CheckpointStore(open_storage(f"{bucket}/run"), fence=1, highest_fence=lambda: 1)
    fill(store)
    store.storage.write("step-000000055-f0001/model.safetensors", b"12345")
    carry_out(store, plan_pruning(store, KEEP, quarantined=False))
    assert [checkpoint.step for checkpoint in store.list()] == [60, 50, 40, 10]
    assert len(store.storage.list()) == 4
    with pytest.raises(CorruptCheckpoint):
        store.storage.delete("step-000000060-f0001/training.json")
        store.verify(store.list()[0])
