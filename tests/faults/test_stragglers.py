"""One rank that is three times slower is named, in the log and in MLflow, within twenty steps; noise is not."""

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_trainer.adapters.distributed import when_backward_is_done
from dist_trainer.training.stragglers import Straggler, Stragglers
from tests.faults.ledger import record
from tests.ranks import run_ranks
from tests.test_end_to_end import Training, training  # noqa: F401

pytestmark = pytest.mark.timeout(120)


def events(one: Training, kind: str) -> list[dict[str, Any]]:
    lines = (one.run / "journal" / "rank-0.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_slow_rank_is_named_within_twenty_steps_in_log_and_mlflow(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    one = training(
        tmp_path,
        "model={target: tests.faults.hanging.SlowRank, rank: 2, after: 40}",  # two batches a step: from step 21
        "tracking.uri=sqlite:///mlflow.db",
        "train={epochs: null, steps: 45, accumulate_steps: 2, eval_every_epochs: null}",
        "hooks=[]",
    )
    command = one.start()
    assert command.finish(timeout_s=90) == 0, command.stderr
    # on a busy machine another rank may be slower for a while, and is named as well
    (named,) = [event for event in events(one, "straggler") if event["straggler"] == 2]
    assert 21 < named["step"] <= 41
    assert "warning: rank 2 on " in command.stdout and "times slower than the others" in command.stdout
    assert "not for want of data" in named["message"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        points = database.execute("select value, step from metrics where key = 'straggler/rank'").fetchall()
    database.close()
    assert (2.0, named["step"]) in points
    record("a rank three times slower", tried=1, lost=0)


def test_a_rank_whose_data_is_slow_is_named_with_that_reason(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    one = training(
        tmp_path,
        "data.train={target: tests.faults.hanging.SlowRows, rank: 0}",
        "data.num_workers=0",
        "train={epochs: null, steps: 30, eval_every_epochs: null}",
        "hooks=[]",
    )
    assert one.start().finish(timeout_s=90) == 0
    (named,) = [event for event in events(one, "straggler") if event["straggler"] == 0]
    assert named["step"] <= 20
    assert "of it waiting for data" in named["message"]


def named_after(work: Any, steps: int = 100, ranks: int = 4) -> tuple[int, Straggler] | None:
    stragglers = Stragglers()
    for step in range(1, steps + 1):
        numbers = [work(step, rank) for rank in range(ranks)]
        if found := stragglers.add(numbers, [number / 4 for number in numbers]):
            return step, found
    return None


def test_whenever_a_rank_becomes_slow_it_is_named_within_twenty_steps() -> None:
    for begin in range(2, 40):
        found = named_after(lambda step, rank, b=begin: 0.03 if rank == 3 and step >= b else 0.01)
        assert found is not None and found[0] - begin <= 20 and found[1].rank == 3
        assert found[1].times == pytest.approx(3.0)


def test_single_slow_steps_and_small_differences_name_nobody() -> None:
    chance = random.Random(5)
    assert named_after(lambda step, rank: 0.5 if chance.random() < 0.1 else 0.01, steps=1000) is None
    assert named_after(lambda step, rank: 0.002 if rank else 0.0005, steps=100) is None
    assert named_after(lambda step, rank: 0.01 * (1 + 0.5 * rank / 3), steps=100) is None


def test_of_two_ranks_the_slow_one_is_named() -> None:
    found = named_after(lambda step, rank: 0.03 if rank == 0 else 0.01, ranks=2)
    assert found is not None and found[1].rank == 0


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(0.5)
        return gradient


def order_on_this_rank() -> list[float]:
    import time

    from dist_trainer.adapters.distributed import join, wrap
    from dist_trainer.config.schema import DdpConfig

    group = join("cpu", timeout_s=20)
    layer = nn.Linear(4, 4)
    ddp = wrap(layer, DdpConfig(), group)
    times = []
    for _ in range(3):
        inputs = torch.ones(2, 4, requires_grad=True)
        out = ddp(inputs)
        loss = (_Slow.apply(out) if group.rank == 0 else out).sum()  # type: ignore[no-untyped-call]
        marks: list[float] = []
        begin = time.monotonic()
        when_backward_is_done(loss, lambda begin=begin, marks=marks: marks.append(time.monotonic() - begin))
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(time.monotonic() - begin)
        times += marks
    group.leave()
    return times


def test_torch_tells_the_end_of_the_own_backward_pass_before_it_waits_for_the_other_rank() -> None:
    slow, fast = run_ranks(2, order_on_this_rank)
    assert len(slow) == len(fast) == 6
    for own, whole in zip(fast[::2], fast[1::2], strict=True):
        assert own < 0.25 < whole, "the fast rank's own part ends before the slow one lets it go"
    for own, whole in zip(slow[::2], slow[1::2], strict=True):
        assert 0.5 <= own <= whole
