"""Where a step's time goes: the table, and what `train.profile` leaves of a training of several ranks."""

import json
import time
from pathlib import Path

import pytest
import torch

from dist_trainer.tracking.journal import read_journal
from dist_trainer.training.phases import PHASES, PhaseTimer, phase_table
from dist_trainer.training.trainer import Result
from tests.ranks import run_ranks
from tests.training.small import rows, trainer


def test_each_moment_belongs_to_one_phase_or_to_none() -> None:
    timer = PhaseTimer(torch.device("cpu"))
    began = time.perf_counter()
    for phase in ("data wait", "forward", None, "forward"):
        timer.enter(phase)
        time.sleep(0.02)
    timer.enter(None)
    passed = time.perf_counter() - began
    assert timer.seconds["forward"] >= 0.04 and timer.seconds["data wait"] >= 0.02
    assert sum(timer.seconds.values()) <= passed - 0.02
    assert [phase for phase, seconds in timer.seconds.items() if not seconds] == list(PHASES[2:])


def test_the_table_names_the_slowest_rank_of_each_phase_and_fits_a_terminal() -> None:
    ranks = [dict.fromkeys(PHASES, 1.0) for _ in range(3)]
    ranks[1]["backward"], ranks[2]["data wait"] = 3.0, 2.0
    table = phase_table(ranks, steps=10)
    assert max(map(len, table)) <= 79
    assert table[1].split() == ["data", "wait", "100.00", "ms", "200.00", "ms", "(rank", "2)", "19.0%"]
    assert table[3].split() == ["backward", "100.00", "ms", "300.00", "ms", "(rank", "1)", "23.8%"]
    assert table[-1].split() == ["all", "700.00", "ms", "800.00", "ms", "(rank", "1)", "100.0%"]
    assert len(table) == len(PHASES) + 2


def train_profiled(folder: str, steps: tuple[int, int]) -> Result:
    settings = {"train.profile": {"steps": list(steps)}, "data.global_batch_size": 6}
    return trainer(folder, "run", settings, val=rows(6), epochs=3).fit()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_profile_times_as_many_steps_as_it_traced_on_every_rank(ranks: int, tmp_path: Path) -> None:
    run_ranks(ranks, train_profiled, str(tmp_path), (2, 4))
    folder = tmp_path / "run" / "profile"
    found = json.loads((folder / "phases.json").read_text())
    assert found["steps"] == [5, 7], "the traced ones are slower"
    assert len(found["ranks"]) == ranks
    for seconds in found["ranks"]:
        assert list(seconds) == list(PHASES)
        assert all(seconds[phase] > 0 for phase in PHASES)
    table = phase_table(found["ranks"], 3)
    assert (folder / "phases.txt").read_text().splitlines() == table
    journal, _ = read_journal(tmp_path / "run" / "journal" / "rank-0.jsonl")
    assert [line["message"] for line in journal if line["kind"] == "profiled"] == ["\n".join(table)]
    assert len(list(folder.glob("rank-*.json"))) == ranks
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("steps", "timed"), [((11, 12), None), ((9, 10), [11, 12]), ((8, 11), [12, 12])])
def test_a_profile_near_the_end_times_what_is_left(
    steps: tuple[int, int], timed: list[int] | None, tmp_path: Path
) -> None:
    (result,) = run_ranks(1, train_profiled, str(tmp_path), steps)
    assert result.step == 12
    path = tmp_path / "run" / "profile" / "phases.json"
    assert (json.loads(path.read_text())["steps"] if path.exists() else None) == timed
