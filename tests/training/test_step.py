"""A step: the gradient of the global batch, however its rows are dealt out, and one update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_trainer.training.random_state import seed_step
from dist_trainer.training.sampler import ResumableSampler
from dist_trainer.training.step import TrainStep, autocast_for
from dist_trainer.training.task import Loss, Task
from tests.ranks import run_ranks
from tests.training.small import CLASSES, Watch, message_of, net, plain, rows, sgd, trainer, vector

pytestmark = pytest.mark.timeout(120)

BATCH, EPOCHS = 7, 2  # 23 rows: the last batch of an epoch has 2
CASES: dict[str, dict[str, Any]] = {
    "mean squared error": {"loss": nn.MSELoss(), "target": "values"},
    "class weights and ignored rows": {
        "loss": nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), ignore_index=1, label_smoothing=0.1)
    },
    "a loss asked to sum": {"loss": nn.CrossEntropyLoss(reduction="sum"), "optimizer": "small"},
    "a function": {"loss": nn.functional.cross_entropy},
    "clipping": {"loss": nn.CrossEntropyLoss(), "settings": {"train.clip_grad_norm": 0.05}},
    "a closure": {"loss": nn.MSELoss(), "target": "values", "optimizer": "lbfgs"},
    "named parameters": {"loss": nn.CrossEntropyLoss(), "optimizer": "named"},
    "no views": {"loss": nn.CrossEntropyLoss(), "settings": {"ddp.gradient_as_bucket_view": False}},
    "unused allowed": {"loss": nn.CrossEntropyLoss(), "settings": {"ddp.find_unused_parameters": True}},
    "a static graph": {
        "loss": nn.CrossEntropyLoss(),
        "settings": {"ddp.static_graph": True, "train.accumulate_steps": 1},
    },
}


def optimizer_for(case: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    kind = case.get("optimizer")
    if kind == "lbfgs":
        return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    if kind == "named":
        return torch.optim.AdamW(list(model.named_parameters()), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.01 if kind == "small" else 0.1, momentum=0.9)


def train_cases(folder: str) -> dict[str, Any]:
    found = {}
    for name, case in CASES.items():
        watch, model = Watch(), net()
        settings = {"train.accumulate_steps": 3, "train.epochs": EPOCHS, "data.global_batch_size": BATCH}
        fit = trainer(
            folder,
            name.replace(" ", "-"),
            settings | case.get("settings", {}),
            model=model,
            train=rows(target=case.get("target", "class")),
            loss=case["loss"],
            optimizer=lambda model, case=case: optimizer_for(case, model),
            hooks=[watch],
        )
        assert fit.fit().state == "finished"
        found[name] = (vector(model), watch.steps)
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_uneven_and_empty_micro_batches_train_as_one_process_does(ranks: int, tmp_path: Path) -> None:
    results = run_ranks(ranks, train_cases, str(tmp_path), timeout_s=100)
    for name, case in CASES.items():
        model, clip = net(), case.get("settings", {}).get("train.clip_grad_norm")
        optimizer, data = optimizer_for(case, model), rows(target=case.get("target", "class"))
        weights, losses, norms = plain(
            model, data, case["loss"], optimizer, epochs=EPOCHS, batch=BATCH, clip=clip
        )
        for found, steps in (result[name] for result in results):
            scale = 1e-5 if name == "a closure" else 1e-6  # a line search magnifies what rounding leaves
            torch.testing.assert_close(
                found, weights, rtol=scale, atol=scale, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert torch.equal(found, results[0][name][0]), name
            if name != "a closure":
                assert [step[0] for step in steps] == pytest.approx(losses, rel=1e-5, abs=1e-6), name
                assert [step[1] for step in steps] == pytest.approx(norms, rel=1e-4), name


class Quarrel(nn.Module):
    """Two branches; which is used depends on the row."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(3, CLASSES), nn.Linear(3, CLASSES), both

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs) + (self.second(inputs) if self.both else 0.0)


class Poisoned(nn.Module):
    """Gives NaN to the rank that has the bad row, at the steps where a rank has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * torch.where(inputs[:, :1] == 99, torch.nan, 1.0)


def poisoned_rows() -> Any:
    data = rows(20)
    first = ResumableSampler(data, global_batch_size=4, rank=0, world_size=1).rows(0)[0].indices
    data.tensors[0][int(first[0]), 0] = 99.0  # type: ignore[attr-defined]
    return data


def train_oddities(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for allowed in (0, 1):
        watch, model = Watch(), Poisoned()
        fit = trainer(
            folder,
            f"poisoned-{allowed}",
            {"train.skip_nonfinite": allowed, "data.global_batch_size": 4, "train.epochs": 2},
            model=model,
            train=poisoned_rows(),
            hooks=[watch],
        )
        error = message_of(fit.fit)
        found[f"poisoned {allowed}"] = (error, [step[2] for step in watch.steps], vector(model))
        if error:
            fit.attempt.group.leave()
    for unused in (False, True):
        fit = trainer(
            folder, f"unused-{unused}", {"ddp.find_unused_parameters": unused}, model=Quarrel(both=False)
        )
        found[f"unused {unused}"] = message_of(fit.fit)
        if not unused:
            fit.attempt.group.leave()
    found["reductions"] = count_reductions(folder)
    return found


def count_reductions(folder: str) -> list[int]:
    """How often a gradient bucket was reduced in each step of four micro-batches."""
    from dist_trainer.training import step as module

    counts: list[int] = []
    wrap = module.wrap

    def counting(*args: Any) -> Any:
        ddp = wrap(*args)

        def hook(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
            counts[-1] += 1
            work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
            return work.get_future().then(lambda future: future.value()[0])

        ddp.register_comm_hook(None, hook)
        return ddp

    class Counter(Watch):
        def on_step(self, trainer: Any, step: int, result: Any) -> None:
            counts.append(0)

    module.wrap = counting
    counts.append(0)
    trainer(
        folder, "counted", {"train.accumulate_steps": 4, "data.global_batch_size": 8}, hooks=[Counter()]
    ).fit()
    module.wrap = wrap
    return counts[:-1]


def test_what_goes_wrong_in_a_step_is_seen_by_all_ranks_at_once(tmp_path: Path) -> None:
    results = run_ranks(2, train_oddities, str(tmp_path), timeout_s=60)
    for found in results:
        error, _, _ = found["poisoned 0"]
        assert error.startswith("NonFiniteError: step 1: ")
        assert "train.skip_nonfinite allows 0 in a row" in error
        assert error == results[0]["poisoned 0"][0]
        error, skipped, weights = found["poisoned 1"]
        assert error == ""
        assert (sum(skipped), len(skipped)) == (2, 10)  # once an epoch
        assert torch.equal(weights, results[0]["poisoned 1"][2])
        assert torch.isfinite(weights).all()
        assert "second.weight, second.bias got no gradient" in found["unused False"]
        assert "set ddp.find_unused_parameters=true" in found["unused False"]
        assert found["unused True"] == ""
        assert set(found["reductions"]) == {1}, "accumulation must reduce once a step"


class Heads(nn.Module):
    """BatchNorm over rows and an LSTM: both must take a batch of no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.one, self.two = nn.Linear(4, CLASSES), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.lstm(inputs.unsqueeze(-1))[0].transpose(1, 2)).mean(2)
        return self.one(hidden), self.two(hidden)


def two_losses(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output[0], target) + output[1].square().mean()


def train_on_an_empty_rank(folder: str) -> tuple[str, Tensor, int]:
    model = Heads()
    fit = trainer(
        folder,
        "empty",
        {"data.global_batch_size": 10, "train.epochs": 2},
        model=model,
        train=rows(11),  # the last batch has one row: two of three ranks have none
        loss=two_losses,
    )
    error = message_of(fit.fit)
    return error, vector(model), int(model.norm.num_batches_tracked)


def test_a_rank_without_rows_takes_part_with_every_head(tmp_path: Path) -> None:
    results = run_ranks(3, train_on_an_empty_rank, str(tmp_path))
    assert [result[0] for result in results] == [""] * 3
    assert all(torch.equal(result[1], results[0][1]) for result in results)
    assert torch.isfinite(results[0][1]).all()


class Wrong(Task):
    def phases(self, step: int) -> tuple[str, ...]:
        return ("other",)

    def loss(self, output: Any, batch: Any) -> Loss:
        return Loss(output.sum(), 1.0)


def test_a_phase_without_an_optimizer_is_named() -> None:
    step = TrainStep.__new__(TrainStep)
    step.task, step.optimizers = Wrong(), {"main": sgd(net())}
    assert "Wrong.phases names 'other', and its optimizers are 'main'" in message_of(
        lambda: step._optimizer_of("other")
    )


def test_seeds_differ_by_step_rank_and_phase_and_repeat() -> None:
    drawn = {}
    for key in [(0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 0)]:
        seed_step(*key)
        drawn[key] = float(torch.rand(()))
    assert len(set(drawn.values())) == 5
    queued = len(torch.cuda._queued_calls)
    seed_step(0, 1, 0, 0)
    assert float(torch.rand(())) == drawn[0, 1, 0, 0]
    assert len(torch.cuda._queued_calls) == queued, "torch must not note down every step"


def test_fp32_needs_no_autocast() -> None:
    with autocast_for("fp32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with autocast_for("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
