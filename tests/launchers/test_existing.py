"""Which run may go on with which configuration."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.config.load import Loaded, dump_config, load_config, read_config
from dist_trainer.config.schema import Config
from dist_trainer.errors import UsageError
from dist_trainer.launchers.existing import (
    ended_by_early_stopping,
    existing_run,
    is_done,
    move_aside,
    rewrite_config,
)
from dist_trainer.launchers.prepare import prepare
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.journal import Journal

CONFIG = """
name: small
model: {target: torch.nn.Linear, in_features: 2, out_features: 1}
data: {train: {target: torch.utils.data.TensorDataset}}
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
train: {epochs: 1}
"""
Load = Callable[..., Loaded]


def save(run: RunFolder, config: Config) -> None:
    """Commit an empty checkpoint."""
    open_store(run, config.checkpoint, fence=run.new_fence({})).commit(4, {"training.json": b"{}"}, {})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The configuration with overrides."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return lambda *overrides: load_config([path], overrides)


@pytest.fixture
def trained(load: Load, tmp_path: Path) -> RunFolder:
    """A finished run with a checkpoint."""
    run = RunFolder.create(tmp_path / "runs" / "small", dump_config(load().config), working_folder=tmp_path)
    save(run, load().config)
    run.write_status(Status("finished", step=4))
    return run


def test_a_finished_run_is_done(trained: RunFolder, load: Load) -> None:
    assert is_done(trained, load(), [])


@pytest.mark.parametrize("state", ["new", "running", "stopped", "failed", "do-not-requeue"])
def test_a_run_in_any_other_state_goes_on(trained: RunFolder, load: Load, state: str) -> None:
    trained.write_status(Status(state))  # type: ignore[arg-type]
    assert not is_done(trained, load(), [])


def test_a_finished_run_with_more_epochs_goes_on(trained: RunFolder, load: Load) -> None:
    assert not is_done(trained, load("train.epochs=2"), [])
    assert is_done(trained, load("launch.max_restarts=9"), [])


def test_preparing_a_finished_run_with_more_epochs_has_its_next_job_train_it(
    trained: RunFolder, load: Load
) -> None:
    folder = trained.path.parent
    prepare(load("launch.max_restarts=9"), runs=folder)
    assert trained.read_status().state == "finished"
    prepare(load("launch.max_restarts=9", "train.epochs=2"), runs=folder)
    status = trained.read_status()
    assert (status.state, status.reason, status.step) == ("stopped", "a longer training was asked for", 4)
    assert read_config(trained.config_path).train.epochs == 2


def test_a_run_that_early_stopping_ended_goes_on_when_that_changes(load: Load, tmp_path: Path) -> None:
    plain = ["data.split.val=0.5", "train.epochs=9"]
    stopping = [*plain, "train.early_stopping.patience=2"]
    run = RunFolder.create(
        tmp_path / "runs" / "small", dump_config(load(*stopping).config), working_folder=tmp_path
    )
    save(run, load(*stopping).config)
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        journal.event("started", first_step=0, total_steps=36)
    run.write_status(Status("finished", step=4))
    assert ended_by_early_stopping(run)
    assert is_done(run, load(*stopping), [])
    assert is_done(run, load(*stopping, "train.epochs=99"), []), "it would end again at once"
    assert not is_done(run, load(*stopping, "train.early_stopping.patience=3"), [])
    assert not is_done(run, load(*plain), [])
    run.write_status(Status("finished", step=36))
    assert not ended_by_early_stopping(run)


def test_a_changed_configuration_is_refused_with_the_difference_and_the_remedy(
    trained: RunFolder, load: Load
) -> None:
    with pytest.raises(UsageError) as refused:
        is_done(trained, load("optimizer.lr=0.2", "seed=1", "train.epochs=2"), ["seed"])
    assert str(refused.value) == (
        "run small was begun with another configuration:\n  optimizer.lr: 0.1 -> 0.2\n"
        "to go on with the change: --allow-change optimizer.lr; to train anew: --fresh, or another name"
    )
    assert not is_done(trained, load("optimizer.lr=0.2", "seed=1", "train.epochs=2"), ["seed", "optimizer"])
    with pytest.raises(UsageError, match=r"it is finished; train anew .* larger train\.epochs") as refused:
        is_done(trained, load("optimizer.lr=0.2"), ["optimizer.lrr"])
    assert "--allow-change optimizer.lrr: has not changed" in str(refused.value)


def test_a_run_that_saved_nothing_takes_any_configuration(trained: RunFolder, load: Load) -> None:
    shutil.rmtree(trained.checkpoints)
    trained.write_status(Status("failed"))
    assert not is_done(trained, load("optimizer.lr=0.2"), [])


def test_checkpoints_in_another_folder_count_too(load: Load, tmp_path: Path) -> None:
    far = "checkpoint.folder=elsewhere"
    config = dump_config(load(far).config)
    run = RunFolder.create(tmp_path / "runs" / "small", config, working_folder=tmp_path)
    assert not is_done(run, load(far, "seed=1"), [])
    save(run, load(far).config)
    with pytest.raises(UsageError, match="seed: 0 -> 1"):
        is_done(run, load(far, "seed=1"), [])


def test_each_configuration_a_run_had_is_kept(trained: RunFolder, load: Load) -> None:
    first = trained.config_path.read_bytes()
    rewrite_config(trained, load().config)
    assert not (trained.path / "config-1.yaml").exists()
    for epochs in (2, 3):
        rewrite_config(trained, load(f"train.epochs={epochs}").config)
    assert (trained.path / "config-1.yaml").read_bytes() == first
    assert b"epochs: 2" in (trained.path / "config-2.yaml").read_bytes()
    assert b"epochs: 3" in trained.config_path.read_bytes()


def test_a_run_moved_aside_is_whole_and_nothing_is_overwritten(trained: RunFolder) -> None:
    folder = trained.path
    (folder / "mine").touch()
    assert move_aside(folder) == folder.with_name("small-old-1")
    assert (folder.with_name("small-old-1") / "mine").exists()
    assert existing_run(folder) is None
    assert move_aside(folder) is None
    folder.mkdir()
    assert move_aside(folder) == folder.with_name("small-old-2")


def test_a_run_that_is_being_trained_is_not_moved(trained: RunFolder) -> None:
    with trained.lock(), pytest.raises(UsageError, match="is being trained by pid"):
        move_aside(trained.path)
    assert trained.config_path.exists()
