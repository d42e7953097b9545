"""That what saves, resumes, restarts, order and watching cost is measured on the real thing; not how much it is."""

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import compared, costs, grown, growth, order, restarts, saves
from benchmarks.frame import Sample
from benchmarks.goals import Figure
from benchmarks.peers.restarting import SAVES_EVERY
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.training.hooks import Hook
from dist_trainer.training.trainer import Trainer


def test_a_figure_holds_the_ratio_within_each_round_against_its_goal() -> None:
    samples: dict[str, list[Sample]] = {  # the machine got slower
        compared.HERE: [{"stall": 1.0, "own": 4.0}, {"stall": 2.0, "own": 8.0}],
        "torch": [{"stall": 2.0}, {"stall": 4.0}],
        compared.FLOOR: [{"stall": 0.1}, {"stall": 0.3}],
    }
    found = compared.beside_peer(samples, "a save", "ms", "stall", peer="torch", goal=0.6, scale=1000)
    assert found == Figure("a save", "ms", 1500, {"torch": 3000}, 200.0, 0.5, 0.6)
    other = compared.beside_peer(samples, "it", "s", "stall", own_name="own", peer="torch", goal=0.6)
    assert (other.here, other.ratio, other.reached) == (6, 2, False)


def test_saves_and_resumes_are_the_products_own_on_a_disk() -> None:
    assert saves.file_system(Path("/proc/self")) == "proc"
    with saves.folder_on_disk() as folder:
        assert saves.file_system(folder) not in ("tmpfs", "ramfs", "unknown")
        training = saves.Trained(1)
        saver, peer = saves.Saver(folder / "here", training), saves.Peer(folder, training)
        ours, theirs = saver.sample(), peer.sample()
        assert 0 < ours["stall"] < ours["whole"] and ours["resume"] > 0
        assert theirs["stall"] == theirs["whole"] and theirs["resume"] > 0
        assert saver.sample().keys() == ours.keys(), "a second save goes into the same buffers"
        committed = sorted(path.parent.name for path in (folder / "here").glob("*/COMMIT.json"))
        assert committed == ["step-000000003-f0001", "step-000000004-f0001"], "retention is at work"
    assert not folder.exists()


def test_saves_are_measured_beside_torch_and_the_bare_disk() -> None:
    found = saves.measure(1, megabytes=1)
    assert [figure.goal for figure in found] == [0.12, 0.12, 1.5, 2]
    for figure in found:
        assert figure.ratio and figure.floor and figure.peers.keys() == {saves.PEER}


def test_the_state_that_is_saved_has_the_size_that_is_told() -> None:
    training = saves.Trained(60)
    held = sum(tensor.nbytes for tensor in training.tensors().values())
    assert held == pytest.approx(60e6, rel=0.1)


def test_the_order_is_asked_for_as_in_a_resume_and_by_step() -> None:
    sampler = order._sampler(100_000, 8)
    every = [index for step in range(20) for rows in sampler.rows(step) for index in rows.indices.tolist()]
    begun = order.here(100_000, 8, 20 * sampler.global_batch_size)
    assert begun["first"] > 0 and begun["memory"] >= 0
    assert len(every) == 20 * sampler.global_batch_size // 8
    assert order.rate(100_000, 8, 0)["rate"] > 0
    assert order.peer(1000, 8, 700)["first"] > 0


def test_each_sample_of_the_order_is_taken_in_a_new_process() -> None:
    found = compared.in_new_process("benchmarks.order", "here", 10**9, 8, 7 * 10**8)
    assert found.keys() == {"first", "memory"}


def test_the_orders_figures_are_those_of_the_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(module: str, kind: str, length: int, ranks: int, start: int) -> Mapping[str, float]:
        return {"first": 0.01 if start == 0 else 0.011, "memory": 6e6, "rate": 1e6 * ranks}

    monkeypatch.setattr(order, "in_new_process", sample)
    first, memory, few, many, resumed = order.measure(2)
    assert first.reached and (memory.here, memory.goal) == (6, 50) and few.at_least
    assert (few.here, few.reached, many.here) == (8e6, True, 64e6)
    assert resumed.ratio == pytest.approx(1.1) and resumed.reached


@pytest.mark.timeout(300)
def test_a_killed_worker_is_replaced_here_and_by_torchrun_from_a_checkpoint() -> None:
    for sample in (restarts.here(), restarts.torchrun()):
        assert sample["restart"] > 0
        saved = sample["first step"] - 1
        assert saved > 0 and saved % SAVES_EVERY == 0


def test_what_watching_costs_is_held_against_a_step_of_10_ms() -> None:
    found = costs.measure(1, steps=20)
    assert len(found) == 2 + 2 * len(costs.RANKS)
    for figure in found:
        assert figure.ratio == pytest.approx(figure.here / 10) and figure.here > 0
        assert figure.goal == 0.03


class _Nothing(Hook):
    """Is there, as a user's would be."""


def test_the_beats_that_are_counted_are_those_of_a_real_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[tuple[int, str]] = []
    beat = Heartbeat.beat

    def heard(self: Heartbeat, step: int, phase: str) -> None:
        said.append((step, phase))
        beat(self, step, phase)

    monkeypatch.setattr(Heartbeat, "beat", heard)
    Trainer(
        nn.Linear(2, 1),
        train=[(torch.ones(2), torch.ones(1))] * 8,
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        loss=nn.MSELoss(),
        hooks=[_Nothing()],
        settings={"tracking.uri": None, "launch.device": "cpu"},
        steps=6,
        global_batch_size=4,
        runs=tmp_path,
    ).fit()
    begins = [said.index((step, "data")) for step in range(1, 6)]
    steps = [[phase for _, phase in said[first:last]] for first, last in pairwise(begins)]
    usual = [step for step in steps if "exchange" not in step][-1]
    assert usual[0] == costs.BEATS[0] and usual[-1] == costs.BEATS[-1]
    assert len(usual) == len(costs.BEATS), (
        f"a step says {usual}: each costs the same, so the number is what counts"
    )


@pytest.mark.timeout(180)
def test_what_a_rank_spends_is_measured_on_every_rank_of_a_real_training() -> None:
    found = growth.sample(2)
    own = {name.partition(": ")[2] for name in found if name.startswith("rank 0: ")}
    others = {name.partition(": ")[2] for name in found if name.startswith("others: ")}
    assert own - others == {"journal, a point of 10 metrics"}, "which rank 0 writes alone"
    expected = (
        "start-up",
        "heartbeat",
        "stop agreement",
        "checkpoint",
        "memory, resident",
        "memory, its share",
    )
    for quantity in expected:
        assert any(name.startswith(quantity) for name in others)
    assert all(value > 0 for value in found.values())


def test_growth_is_told_for_each_quantity_by_number_of_ranks() -> None:
    few = growth.of_ranks([{"heartbeat": 2e-6, "memory, resident": 4e8}])
    more = growth.of_ranks([{"heartbeat": 3e-6, "memory, resident": 4e8}] + [{"heartbeat": 5e-6}] * 3)
    samples: dict[str, list[Sample]] = {"1": [few], "4": [more]}
    heartbeat, memory = growth.growth(samples, (1, 4))
    assert heartbeat.here == pytest.approx(3) and heartbeat.ratio == pytest.approx(1.5)
    assert memory.here == pytest.approx(400) and memory.ratio == 1 and memory.reached
    assert growth.as_table(samples, (1, 4)) == [
        "| CPU time or memory of a rank | 1 | 4 | 4 to 1 | 4 to 4 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| heartbeat: rank 0 | 2 us | 3 us | 1.50 | 1.00 |",
        "| memory, resident: rank 0 | 400 MB | 400 MB | 1.00 | 1.00 |",
        "| heartbeat: the other ranks, highest |  | 5 us |  | 1.00 |",
    ]


def test_cpu_time_leaves_out_what_a_rank_waits_for() -> None:
    assert grown.cpu_s(lambda: time.sleep(0.05), 2) < 0.05
    memory: Any = grown.memory_bytes()
    assert 0 < memory["memory, its share"] <= memory["memory, resident"]
    assert np.isfinite(memory["memory, resident"])
