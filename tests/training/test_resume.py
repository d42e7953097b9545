"""Contract 4: kill it anywhere, and the finished run is the one that was never touched."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.ranks import RankFailed, run_ranks
from tests.training.recipes import LENGTH, KillAt, train, trained_rows, weights_digest

pytestmark = pytest.mark.timeout(180)
STEPS_PER_EPOCH = 8  # 101 rows in batches of 14: the last has 3


def run_to_the_end(
    ranks: int, folder: Path, options: dict[str, object], kill: tuple[int, int] | None
) -> None:
    folder.mkdir()
    hooks = (KillAt(*kill, folder / "killed"),) if kill else ()
    if kill:
        with pytest.raises(RankFailed):
            run_ranks(ranks, train, str(folder), options, hooks)
        assert (folder / "killed").exists()
    results = run_ranks(ranks, train, str(folder), options, hooks)
    assert {result.state for result in results} == {"finished"}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_rank_killed_at_a_random_step_changes_neither_a_bit_nor_the_order(
    ranks: int, tmp_path: Path
) -> None:
    seed = int(os.environ.get("RESUME_SEED", random.SystemRandom().randrange(10**6)))
    chance = random.Random(seed)
    options = {"data.num_workers": 2}
    kill = (chance.randrange(ranks), chance.randrange(6, 3 * STEPS_PER_EPOCH))
    again = f"rank {kill[0]} was killed at step {kill[1]}; once more: RESUME_SEED={seed}"
    print(again)
    run_to_the_end(ranks, tmp_path / "untouched", options, None)
    run_to_the_end(ranks, tmp_path / "killed", options, kill)
    assert weights_digest(tmp_path / "killed") == weights_digest(tmp_path / "untouched"), again
    rows = trained_rows(tmp_path / "killed")
    assert rows == trained_rows(tmp_path / "untouched"), again
    for epoch in range(3):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        assert Counter(row for step in steps for row in rows[step]) == Counter(range(LENGTH)), again


@pytest.mark.parametrize(
    "options",
    [
        {"train.ema_decay": 0.9, "train.clip_grad_norm": 0.5},
        {"train.precision": "bf16", "ddp.compress": "bf16"},
        {"train.precision": "fp16", "ddp.compress": "fp16", "ddp.gradient_as_bucket_view": False},
        {"ddp.find_unused_parameters": True, "data.order": "balanced"},
        {"ddp.static_graph": True, "train.accumulate_steps": 1},
    ],
    ids=[
        "average and clipping",
        "bf16",
        "fp16 with its scaler",
        "unused parameters and balanced order",
        "static graph",
    ],
)
def test_resume_is_bit_identical_with(options: dict[str, object], tmp_path: Path) -> None:
    run_to_the_end(3, tmp_path / "untouched", options, None)
    run_to_the_end(3, tmp_path / "killed", options, (1, 12))
    assert weights_digest(tmp_path / "killed") == weights_digest(tmp_path / "untouched")


def test_without_the_replayed_step_three_ranks_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DDP's rebuilt buckets are why a resume replays the first step; if torch stops this, so can we
    run_to_the_end(3, tmp_path / "untouched", {}, None)
    (tmp_path / "killed").mkdir()
    with pytest.raises(RankFailed):
        run_ranks(3, train, str(tmp_path / "killed"), {}, (KillAt(0, 12, tmp_path / "done"),))
    run_ranks(3, train_without_replay, str(tmp_path / "killed"))
    assert weights_digest(tmp_path / "killed") != weights_digest(tmp_path / "untouched")


def train_without_replay(folder: str) -> object:
    from dist_trainer.training.step import TrainStep

    TrainStep.replay = lambda *args, **keywords: None  # type: ignore[method-assign]
    return train(folder)


def test_four_ranks_then_two_then_three_train_the_rows_of_one_run(tmp_path: Path) -> None:
    run_to_the_end(1, tmp_path / "one", {}, None)
    folder = tmp_path / "resized"
    folder.mkdir()
    for ranks, step in ((4, 6), (2, 13)):
        with pytest.raises(RankFailed):
            run_ranks(ranks, train, str(folder), {}, (KillAt(0, step, folder / f"killed-at-{step}"),))
    assert run_ranks(3, train, str(folder))[0].state == "finished"
    assert trained_rows(folder) == trained_rows(tmp_path / "one")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run_ranks(2, train, str(tmp_path))[0]
    digest = weights_digest(tmp_path)
    again = run_ranks(2, train, str(tmp_path))[0]
    assert (again.state, again.step, again.metrics) == ("finished", first.step, first.metrics)
    assert weights_digest(tmp_path) == digest
