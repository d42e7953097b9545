"""Targets: import paths that are wrong in every way, arguments that do not fit, nested building."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.config.check import check_in_child
from dist_trainer.config.imports import CODE_FOLDER_VARIABLE
from dist_trainer.config.schema import Config, ModelConfig, OptimizerConfig, SchedulerConfig, Target
from dist_trainer.config.targets import build, check_targets, fill, import_target
from dist_trainer.errors import ConfigError

PARTS = """\
from torch import nn
from torch.utils.data import IterableDataset

class Net(nn.Module):
    def __init__(self, width, *, depth=2):
        super().__init__()
        self.width, self.depth = width, depth

class Data:
    def __init__(self, path="x", only=None): ...
    def __len__(self): return 1
    def __getitem__(self, index): return index

class Stream(IterableDataset):
    def __iter__(self): return iter(())

class Plain: ...

def collate(rows, pad=0): return rows

def everything(**options): return options

def first(a, /, b=2, *rest, c=3): return (a, b, rest, c)

CONSTANT = 3
"""


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules of a user's own in it; nothing of it stays imported."""
    (tmp_path / "user_parts.py").write_text(PARTS)
    (tmp_path / "user_broken.py").write_text("import json\nimport nosuchpackage\n")
    (tmp_path / "user_syntax.py").write_text("def f(:\n")
    (tmp_path / "user_exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "__init__.py").write_text("")
    (tmp_path / "user_package" / "inner.py").write_text("class Inner:\n    class Deep: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    """A first optimizer makes torch import its compiler, which sets an environment variable."""
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def error_of(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        import_target(path)
    return str(caught.value)


def test_classes_and_functions_are_found_installed_and_in_the_current_folder() -> None:
    assert import_target("torch.nn.Linear") is torch.nn.Linear
    assert import_target("torch.nn.functional.mse_loss") is torch.nn.functional.mse_loss
    assert import_target("user_parts.collate").__name__ == "collate"
    assert import_target("user_package.inner.Inner.Deep").__qualname__ == "Inner.Deep"


def test_a_module_younger_than_the_process_is_found(user_folder: Path) -> None:
    assert "there is no module user_new" in error_of("user_new.f")
    (user_folder / "user_new.py").write_text("def f(): ...\n")
    assert callable(import_target("user_new.f"))


@pytest.mark.parametrize("first", ["", "here", "elsewhere"])
def test_in_a_job_the_copy_of_the_code_takes_the_current_folders_place(
    first: str, user_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path_factory.mktemp("code")
    (copy / "user_package").mkdir()  # without __init__.py, as folders of modules often are
    (copy / "user_package" / "inner.py").write_text("def as_submitted(): ...\n")
    (user_folder / "user_package" / "__init__.py").unlink()
    monkeypatch.setenv(CODE_FOLDER_VARIABLE, str(copy))
    sys.path.insert(0, str(user_folder) if first == "here" else first)
    assert callable(import_target("user_package.inner.as_submitted"))
    assert f"neither installed nor in {copy}" in error_of("user_nowhere.f")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "torhc.nn.Linear",
            "torhc.nn.Linear: there is no module torhc, neither installed nor in {here}; did you mean torch",
        ),
        ("torch.nn.Linaer", "torch.nn.Linaer: module torch.nn has no Linaer; did you mean Linear"),
        ("torch.optin.SGD", "torch.optin.SGD: module torch has no optin; did you mean optim"),
        (
            "user_package.iner.Inner",
            "user_package.iner.Inner: module user_package has no iner; did you mean inner?",
        ),
        (
            "user_package.inner.Inner.Dep",
            "user_package.inner.Inner.Dep: class user_package.inner.Inner has no Dep",
        ),
        (
            "user_broken.f",
            "user_broken.f: module user_broken fails to import: ModuleNotFoundError: No module named 'nosuchpackage' "
            "({here}/user_broken.py:2)",
        ),
        (
            "user_syntax.f",
            "user_syntax.f: module user_syntax fails to import: SyntaxError: invalid syntax "
            "({here}/user_syntax.py:1)",
        ),
        (
            "user_exits.f",
            "user_exits.f: module user_exits fails to import: SystemExit: 3 ({here}/user_exits.py:1)",
        ),
        ("user_parts.CONSTANT", "user_parts.CONSTANT: this is a value of type int, not a class or function"),
        ("user_package.inner", "user_package.inner: this is a module, not a class or function; it has Inner"),
    ],
)
def test_an_import_that_fails_says_how(path: str, message: str) -> None:
    assert error_of(path).startswith(message.format(here=Path.cwd()))


def test_a_target_is_built_from_its_arguments() -> None:
    net = build(Target(target="user_parts.Net", width=3), depth=4)
    assert (net.width, net.depth) == (3, 4)
    assert build({"target": "collections.OrderedDict"}) == {}


def test_nested_targets_are_built_first_at_any_depth_and_in_lists() -> None:
    linear = {"target": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    model = build(Target(target="torch.nn.Sequential", args=[linear, {"target": "torch.nn.ReLU"}]))
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.ReLU]
    deep = build({"target": "user_parts.everything", "a": {"b": [{"c": linear}]}, "d": {"e": 1}})
    assert isinstance(deep["a"]["b"][0]["c"], torch.nn.Linear)
    assert deep["d"] == {"e": 1}
    weights = {"target": "torch.tensor", "data": [1.0, 2.0]}
    loss = build(Target(target="torch.nn.CrossEntropyLoss", weight=weights))
    assert loss.weight.tolist() == [1.0, 2.0]


def test_arguments_that_go_by_position_do() -> None:
    assert build({"target": "user_parts.first", "a": 1}) == (1, 2, (), 3)
    assert build({"target": "user_parts.first", "a": 1, "b": 5, "rest": [6, 7], "c": 8}) == (1, 5, (6, 7), 8)
    with pytest.raises(ConfigError, match="rest must be a list"):
        build({"target": "user_parts.first", "a": 1, "rest": 3})


def test_a_function_that_lacks_arguments_is_used_itself() -> None:
    assert build(Target(target="torch.nn.functional.mse_loss")) is torch.nn.functional.mse_loss
    bound = build(Target(target="user_parts.collate", pad=3))
    assert isinstance(bound, functools.partial)
    assert bound.keywords == {"pad": 3}
    with pytest.raises(
        ConfigError, match=r"padd is not an argument of user_parts\.collate; .* did you mean pad\?"
    ):
        build(Target(target="user_parts.collate", padd=3))


def test_arguments_that_do_not_fit_are_named_with_those_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Target(target="user_parts.Net", widht=3, dept=1, x=2))
    assert str(caught.value).splitlines() == [
        "user_parts.Net: widht is not an argument of user_parts.Net; accepted: width, depth; did you mean width?",
        "user_parts.Net: dept is not an argument of user_parts.Net; accepted: width, depth; did you mean depth?",
        "user_parts.Net: x is not an argument of user_parts.Net; accepted: width, depth",
    ]
    with pytest.raises(
        ConfigError, match=r"lacks width, which user_parts\.Net requires; accepted: width, depth"
    ):
        build(Target(target="user_parts.Net"))


def test_an_error_of_the_callable_itself_names_the_target() -> None:
    with pytest.raises(RuntimeError) as caught:
        build(Target(target="torch.nn.Linear", in_features=-1, out_features=2))
    assert caught.value.__notes__ == ["while building torch.nn.Linear"]


def test_defaults_are_filled_in_only_where_they_are_taken_and_not_given() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    cosine = "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert fill(SchedulerConfig(target=cosine), optimizer, T_max=7, total_steps=9).T_max == 7
    assert fill(SchedulerConfig(target=cosine, T_max=3), optimizer, T_max=7).T_max == 3
    step = SchedulerConfig(target="torch.optim.lr_scheduler.StepLR", step_size=2)
    assert fill(step, optimizer, T_max=7).step_size == 2


def test_weights_are_an_argument_unless_they_name_a_file() -> None:
    assert build(ModelConfig(target="user_parts.everything", weights="DEFAULT")) == {"weights": "DEFAULT"}
    assert build(ModelConfig(target="user_parts.everything", weights="a.safetensors")) == {}
    assert build(ModelConfig(target="user_parts.everything")) == {}


def test_groups_are_no_argument_of_the_optimizer() -> None:
    config = OptimizerConfig.model_validate(
        {"target": "torch.optim.SGD", "lr": 0.5, "groups": [{"match": "a"}]}
    )
    optimizer = build(config, [torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5


def config_with(**sections: Any) -> Config:
    return Config.model_validate(
        {
            "name": "run",
            "model": {"target": "user_parts.Net", "width": 3},
            "data": {"train": {"target": "user_parts.Data"}},
            "task": {"target": "user_parts.everything"},
            "optimizer": {"target": "torch.optim.SGD", "lr": 0.1},
            **sections,
        }
    )


def test_targets_that_fit_are_no_problem() -> None:
    config = config_with(
        loss={"target": "torch.nn.functional.mse_loss"},
        data={"train": {"target": "user_parts.Data"}, "collate": {"target": "user_parts.collate", "pad": 1}},
        scheduler={"target": "torch.optim.lr_scheduler.CosineAnnealingLR"},
        metrics={"a": {"target": "user_parts.everything", "x": 1}},
    )
    assert check_targets(config) == []


@pytest.mark.parametrize(
    ("sections", "key", "message"),
    [
        (
            {"model": {"target": "torch.nn.Linaer"}},
            "model.target",
            "cannot be imported: torch.nn.Linaer: module",
        ),
        (
            {"model": {"target": "user_parts.Plain"}},
            "model.target",
            "is user_parts.Plain, which is not a torch.nn.Module",
        ),
        (
            {"model": {"target": "user_parts.Net"}},
            "model",
            "lacks width, which user_parts.Net requires; accepted: width, depth",
        ),
        (
            {"model": {"target": "user_parts.Net", "widht": 3}},
            "model.widht",
            "is not an argument of user_parts.Net; accepted: width, depth; did you mean width?",
        ),
        (
            {"model": {"target": "torch.nn.Sequential", "args": [{"target": "a.B"}]}},
            "model.args.0.target",
            "cannot be imported: a.B: there is no module a",
        ),
        (
            {"model": {"target": "user_parts.Net", "width": {"x": {"target": "user_parts.Data", "pth": 1}}}},
            "model.width.x.pth",
            "is not an argument of user_parts.Data; accepted: path, only; did you mean path?",
        ),
        (
            {"data": {"train": {"target": "user_parts.Stream"}}},
            "data.train.target",
            "is user_parts.Stream, an IterableDataset: without access to any sample by its number",
        ),
        (
            {"data": {"train": {"target": "user_parts.Plain"}}},
            "data.train.target",
            "is user_parts.Plain, which is not a data set: it has no __getitem__",
        ),
        (
            {
                "data": {
                    "train": {"target": "user_parts.Data"},
                    "collate": {"target": "user_parts.collate", "padd": 1},
                }
            },
            "data.collate.padd",
            "is not an argument of user_parts.collate; accepted: rows, pad; did you mean pad?",
        ),
        (
            {"task": {"target": "user_parts.Plain"}},
            "task.target",
            "is user_parts.Plain, which has no method forward and no method loss",
        ),
        (
            {"loss": {"target": "torch.nn.CrossEntropyLoss", "label_smoothin": 0.1}},
            "loss.label_smoothin",
            "is not an argument of torch.nn.CrossEntropyLoss; accepted: weight, ",
        ),
        (
            {"optimizer": {"target": "user_parts.Plain"}},
            "optimizer.target",
            "is user_parts.Plain, which is not a torch.optim.Optimizer",
        ),
        (
            {"optimizer": {"target": "torch.optim.Adam", "momentum": 0.9}},
            "optimizer.momentum",
            "is not an argument of torch.optim.Adam; accepted: lr, betas, ",
        ),
        (
            {"optimizer": {"target": "torch.optim.SGD", "momentum": -1}},
            "optimizer",
            "is refused by torch.optim.SGD: Invalid momentum value: -1",
        ),
        (
            {"optimizer": {"target": "torch.optim.SGD", "groups": [{"match": "*", "weight_decy": 0}]}},
            "optimizer.groups.0.weight_decy",
            "is not an argument of torch.optim.SGD; accepted: lr, ",
        ),
        (
            {"scheduler": {"target": "torch.optim.lr_scheduler.StepLR"}},
            "scheduler",
            "lacks step_size, which torch.optim.lr_scheduler.StepLR requires; accepted: step_size, ",
        ),
        (
            {"scheduler": {"target": "torch.optim.SGD"}},
            "scheduler.target",
            "is torch.optim.SGD, which is not a torch.optim.lr_scheduler.LRScheduler",
        ),
        (
            {"metrics": {"a": {"target": "user_parts.CONSTANT"}}},
            "metrics.a.target",
            "cannot be imported: user_parts.CONSTANT: this is a value",
        ),
    ],
)
def test_each_target_that_does_not_fit_is_one_problem(
    sections: dict[str, Any], key: str, message: str
) -> None:
    (problem,) = check_targets(config_with(**sections))
    assert problem[0] == key
    assert problem[1].startswith(message)


@pytest.mark.timeout(120)
def test_a_child_process_finds_the_same(capfd: pytest.CaptureFixture[str], user_folder: Path) -> None:
    (user_folder / "user_talks.py").write_text("print('hello')\nfrom user_parts import Net\n")
    config = config_with(model={"target": "user_talks.Net"})
    assert check_in_child(config) == check_targets(config)
    assert len(check_targets(config)) == 1


@pytest.mark.timeout(120)
def test_a_module_that_ends_the_process_is_an_error(user_folder: Path) -> None:
    (user_folder / "user_kills.py").write_text(
        "import os, sys\nsys.stderr.write('out of luck\\n')\nos._exit(7)\n"
    )
    with pytest.raises(ConfigError, match="importing the targets ended the process with 7: out of luck"):
        check_in_child(config_with(model={"target": "user_kills.Net"}))


def test_a_file_of_weights_that_is_not_there_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").touch()
    for name, problems in (("none.pt", 1), (str(tmp_path / "there.safetensors"), 0), ("DEFAULT", 0)):
        model = {"target": "torchvision.models.resnet18", "weights": name}
        found = [key for key, _ in check_targets(config_with(model=model)) if key == "model.weights"]
        assert len(found) == problems, name
