"""A training's result draws its curves, and a notebook's bar is not there outside of one."""

from pathlib import Path

import torch

from dist_trainer.training.curves import Curves
from dist_trainer.training.metrics import Accuracy
from dist_trainer.training.notebook import NotebookProgress, in_kernel
from dist_trainer.training.result import Result
from tests.training.small import rows, trainer


def test_the_losses_and_metrics_of_a_run_are_drawn_by_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"val": rows(), "test": rows(), "metrics": {"accuracy": Accuracy()}}
    made = trainer(str(tmp_path), "drawn", {"train.epochs": 2}, **given)
    assert not in_kernel() and not any(isinstance(hook, NotebookProgress) for hook in made.hooks)
    figure = made.fit().plot()
    loss, accuracy = figure.axes
    assert (loss.get_title(), accuracy.get_title()) == ("loss", "accuracy")
    assert [line.get_label() for line in loss.lines] == ["train", "val", "test"]
    assert [line.get_label() for line in accuracy.lines] == ["val", "test"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_run_without_a_point_draws_nothing(tmp_path: Path) -> None:
    assert Curves.of(tmp_path / "none.jsonl").axes == []
    assert Result("finished", 0, {}).plot().axes == []
