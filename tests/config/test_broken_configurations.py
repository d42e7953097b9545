"""Each broken configuration ends in one clear line: the place, the key, what was found and what is accepted."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app

SECTIONS = {
    "name": "name: run",
    "model": "model: {target: torch.nn.Linear, in_features: 4, out_features: 2}",
    "data": "data: {train: {target: my.Data}, val: {target: my.Data}}",
    "loss": "loss: {target: torch.nn.CrossEntropyLoss}",
    "optimizer": "optimizer: {target: torch.optim.SGD, lr: 0.1}",
}
# name of the case: (sections that differ, arguments, the one line that is expected); other sections are line 6
CASES: dict[str, tuple[dict[str, str], list[str], str]] = {
    # names of keys
    "unknown section": (
        {"trane": "trane: {epochs: 3}"},
        [],
        "c.yaml:6: trane is not a known key; did you mean train or tracking?",
    ),
    "unknown key": (
        {"train": "train: {epoch: 3}"},
        [],
        "c.yaml:6: train.epoch is not a known key; did you mean train.epochs?",
    ),
    "key of another section": (
        {"x": "every_steps: 3"},
        [],
        "c.yaml:6: every_steps is not a known key; did you mean checkpoint.every_steps?",
    ),
    "unknown key like no other": (
        {"ddp": "ddp: {xyz: 1}"},
        [],
        "c.yaml:6: ddp.xyz is not a known key; accepted: bucket_cap_mb, gradient_as_bucket_view, static_graph, "
        "find_unused_parameters, sync_batchnorm, compress",
    ),
    "misspelt needed section": (
        {"optimizer": "optimiser: {target: torch.optim.SGD, lr: 0.1}"},
        [],
        "c.yaml:5: optimiser is not a known key; did you mean optimizer?",
    ),
    "unknown key on the command line": (
        {},
        ["train.epoch=3"],
        "command line: train.epoch is not a known key; did you mean train.epochs?",
    ),
    "duplicate key": (
        {"optimizer": "optimizer: {target: torch.optim.SGD, lr: 0.1, lr: 0.2}"},
        [],
        "c.yaml:5: optimizer.lr is given twice, first at c.yaml:5",
    ),
    "duplicate section": (
        {"x": "loss: {target: a.B}"},
        [],
        "c.yaml:6: loss is given twice, first at c.yaml:4",
    ),
    # what is missing
    "no name": (
        {"name": "# nothing"},
        [],
        "c.yaml: name is missing; it must be up to 64 letters, digits, dots, dashes and underscores",
    ),
    "no model": ({"model": "# nothing"}, [], "c.yaml: model is missing; it must be a section with target"),
    "no data": ({"data": "# nothing"}, [], "c.yaml: data is missing; it must be a section with train"),
    "no target": (
        {"model": "model: {hidden: 3}"},
        [],
        "c.yaml:2: model.target is missing; it must be an import path such as torch.nn.Linear",
    ),
    "no loss": (
        {"loss": "# nothing"},
        [],
        "c.yaml: loss is missing; the default task needs one, such as {target: torch.nn.CrossEntropyLoss}",
    ),
    "no pattern of a group": (
        {"optimizer": "optimizer: {target: torch.optim.SGD, groups: [{lr_scale: 2}]}"},
        [],
        "c.yaml:5: optimizer.groups.0.match is missing; it must be text",
    ),
    # types
    "text for a number": (
        {"train": "train: {epochs: three}"},
        [],
        "c.yaml:6: train.epochs must be a whole number or null, got 'three'",
    ),
    "quoted number": (
        {"train": 'train: {epochs: "3"}'},
        [],
        "c.yaml:6: train.epochs must be a whole number or null, got '3'",
    ),
    "fraction for a whole number": (
        {"train": "train: {epochs: 1.5}"},
        [],
        "c.yaml:6: train.epochs must be a whole number or null, got 1.5",
    ),
    "truth for a number": (
        {"train": "train: {epochs: true}"},
        [],
        "c.yaml:6: train.epochs must be a whole number or null, got true",
    ),
    "yes is text": (
        {"train": "train: {compile: yes}"},
        [],
        "c.yaml:6: train.compile must be true or false, got 'yes'",
    ),
    "number for truth": (
        {"train": "train: {compile: 1}"},
        [],
        "c.yaml:6: train.compile must be true or false, got 1",
    ),
    "number for text": (
        {"launch": "launch: {env: {A: 1}}"},
        [],
        "c.yaml:6: launch.env.A must be text, got 1; put it in quotes",
    ),
    "text for a section": ({"train": "train: 3"}, [], "c.yaml:6: train must be a section of keys, got 3"),
    "text for a list": (
        {"train": "train: {freeze: features.*}"},
        [],
        "c.yaml:6: train.freeze must be a list, got 'features.*'",
    ),
    "null for a section": ({}, ["train=null"], "command line: train must be a section of keys, got null"),
    "target is a list": (
        {"model": "model: {target: [torch.nn.Linear]}"},
        [],
        "c.yaml:2: model.target must be an import path such as torch.nn.Linear, got a list of 1",
    ),
    "one profiled step": (
        {"train": "train: {profile: {steps: [3]}}"},
        [],
        "c.yaml:6: train.profile.steps must be a list of 2 whole numbers, got a list of 1",
    ),
    # ranges and choices
    "negative rate": (
        {"optimizer": "optimizer: {target: torch.optim.SGD, lr: -1}"},
        [],
        "c.yaml:5: optimizer.lr must be > 0, got -1",
    ),
    "no rate": ({}, ["optimizer.lr=0"], "command line: optimizer.lr must be > 0, got 0"),
    "rate is text": (
        {"optimizer": "optimizer: {target: torch.optim.SGD, lr: fast}"},
        [],
        "c.yaml:5: optimizer.lr must be a number > 0, got 'fast'",
    ),
    "rate of a group": (
        {"optimizer": 'optimizer: {target: a.B, groups: [{match: "a*", lr: -2}]}'},
        [],
        "c.yaml:5: optimizer.groups.0.lr must be > 0, got -2",
    ),
    "no samples": (
        {},
        ["data.global_batch_size=0"],
        "command line: data.global_batch_size must be >= 1, got 0",
    ),
    "precision": (
        {"train": "train: {precision: fp8}"},
        [],
        "c.yaml:6: train.precision must be fp32, bf16 or fp16, got 'fp8'",
    ),
    "order": (
        {},
        ["data.order=shuffle"],
        "command line: data.order must be shuffled, sequential, balanced or weighted, got 'shuffle'; did you mean "
        "shuffled?",
    ),
    "share of one": ({}, ["data.split.test=1.0"], "command line: data.split.test must be < 1, got 1.0"),
    "seed": ({"seed": "seed: -1"}, [], "c.yaml:6: seed must be >= 0, got -1"),
    "infinite": (
        {"train": "train: {clip_grad_norm: .inf}"},
        [],
        "c.yaml:6: train.clip_grad_norm must be a number or null, got inf",
    ),
    "name with a slash": (
        {"name": "name: a/b"},
        [],
        "c.yaml:1: name must be up to 64 letters, digits, dots, dashes and underscores, got 'a/b'",
    ),
    "target without a module": (
        {"model": "model: {target: Linear}"},
        [],
        "c.yaml:2: model.target must be an import path such as torch.nn.Linear, got 'Linear'",
    ),
    "no workers": (
        {"launch": "launch: {workers_per_node: 0}"},
        [],
        "c.yaml:6: launch.workers_per_node must be >= 1, got 0",
    ),
    "workers by word": (
        {"launch": "launch: {workers_per_node: all}"},
        [],
        "c.yaml:6: launch.workers_per_node must be a whole number or auto, got 'all'",
    ),
    "slurm time": (
        {"slurm": "slurm: {time: 1 day}"},
        [],
        "c.yaml:6: slurm.time must be minutes, 24:00:00 or 2-12:00:00, got '1 day'",
    ),
    "metric's name": (
        {"metrics": "metrics: {top/1: {target: my.Metric}}"},
        [],
        "c.yaml:6: metrics.top/1 must have a name of up to 64 letters, digits, dots, dashes and underscores",
    ),
    # combinations
    "epochs and steps": (
        {"train": "train: {epochs: 3, steps: 100}"},
        [],
        "c.yaml:6: train.epochs and train.steps are both given; keep one and set the other to null",
    ),
    "static graph with accumulation": (
        {"ddp": "ddp: {static_graph: true}"},
        ["train.accumulate_steps=4"],
        "c.yaml:6: ddp.static_graph cannot be combined with train.accumulate_steps > 1, got 4; set one of them to "
        "its default",
    ),
    "synchronised batch norm on a CPU": (
        {"ddp": "ddp: {sync_batchnorm: true}"},
        ["launch.device=cpu"],
        "c.yaml:6: ddp.sync_batchnorm needs GPUs, and launch.device is cpu; PyTorch has no synchronised batch norm "
        "on a CPU",
    ),
    "fewer samples than ranks": (
        {"launch": "launch: {workers_per_node: 4}"},
        ["data.global_batch_size=3"],
        "command line: data.global_batch_size must be at least the world size, 4, got 3; every rank needs a sample "
        "in each step",
    ),
    "split and a set": (
        {"data": "data: {train: {target: my.Data}, val: {target: my.Data}, split: {val: 0.1}}"},
        [],
        "c.yaml:3: data.val and data.split.val are both given; keep one of them",
    ),
    "nothing left to train on": (
        {"data": "data: {train: {target: my.Data}, split: {val: 0.5, test: 0.5}}"},
        [],
        "c.yaml:3: data.split.val and test together must be less than 1, got 1",
    ),
    "idle scheduler": (
        {"scheduler": "scheduler: {}"},
        [],
        "c.yaml:6: scheduler does nothing: give scheduler.target, scheduler.warmup_steps > 0 or both, or leave it "
        "out",
    ),
    "arguments for no scheduler": (
        {"scheduler": "scheduler: {warmup_steps: 3, gamma: 0.1}"},
        [],
        "c.yaml:6: scheduler.gamma is an argument, and there is no scheduler.target to take it",
    ),
    "plateau without a metric": (
        {"scheduler": "scheduler: {target: torch.optim.lr_scheduler.ReduceLROnPlateau}"},
        [],
        "c.yaml:6: scheduler.metric is missing; ReduceLROnPlateau is stepped on a metric: val/loss",
    ),
    "metric for a plain scheduler": (
        {"scheduler": "scheduler: {target: torch.optim.lr_scheduler.StepLR, step_size: 3, metric: val/loss}"},
        [],
        "c.yaml:6: scheduler.metric is for schedulers stepped on a metric, such as ReduceLROnPlateau, not for "
        "torch.optim.lr_scheduler.StepLR",
    ),
    "early stopping on an unknown metric": (
        {
            "train": "train: {early_stopping: {metric: val/acuracy}}",
            "metrics": "metrics: {accuracy: {target: a.B}}",
        },
        [],
        "c.yaml:6: train.early_stopping.metric must be val/loss or val/accuracy, got 'val/acuracy'; did you mean "
        "val/accuracy?",
    ),
    "best by data that is not there": (
        {"checkpoint": "checkpoint: {keep_best: {}}", "data": "data: {train: {target: my.Data}}"},
        [],
        "c.yaml:6: checkpoint.keep_best.metric is val/loss, and there is no validation data; give data.val or "
        "data.split.val",
    ),
    "best by what is never measured": (
        {"checkpoint": "checkpoint: {keep_best: {metric: val/loss}}"},
        ["train.eval_every_epochs=null"],
        "c.yaml:6: checkpoint.keep_best.metric is val/loss, and is never measured; set train.eval_every_epochs or "
        "train.eval_every_steps",
    ),
    "profile backwards": (
        {"train": "train: {profile: {steps: [20, 10]}}"},
        [],
        "c.yaml:6: train.profile.steps must be [first, last] with 0 <= first <= last, got [20, 10]",
    ),
    "profile after the end": (
        {"train": "train: {steps: 5, profile: {steps: [2, 10]}}"},
        [],
        "c.yaml:6: train.profile.steps must end by train.steps, 5, got [2, 10]",
    ),
    "warm-up beyond the end": (
        {"scheduler": "scheduler: {warmup_steps: 100}"},
        ["train.steps=10"],
        "c.yaml:6: scheduler.warmup_steps must be at most train.steps, 10, got 100",
    ),
    "groups for LBFGS": (
        {"optimizer": 'optimizer: {target: torch.optim.LBFGS, groups: [{match: "a*"}]}'},
        [],
        "c.yaml:5: optimizer.groups must be empty: LBFGS takes no parameter groups",
    ),
    "LBFGS in half precision": (
        {"optimizer": "optimizer: {target: torch.optim.LBFGS}", "train": "train: {precision: fp16}"},
        [],
        "c.yaml:6: train.precision must be fp32 or bf16 with LBFGS, got fp16; its closure does not work with loss "
        "scaling",
    ),
    "checkpoints in memory": (
        {},
        ["checkpoint.folder=memory://x"],
        "command line: checkpoint.folder must outlive the process, and memory:// does not; use a folder or the URL "
        "of a store",
    ),
    "the launcher's own variable": (
        {"launch": 'launch: {env: {RANK: "0"}}'},
        [],
        "c.yaml:6: launch.env.RANK is set by the launcher itself; leave it out",
    ),
    # YAML
    "syntax": (
        {"loss": "loss: {target: a.B"},
        [],
        "c.yaml:5: cannot be read as YAML: while parsing a flow mapping, ",
    ),
    "tab": ({"x": "\tseed: 3"}, [], "c.yaml:6: cannot be read as YAML: "),
    "tag": (
        {"seed": "seed: !!python/object/apply:os.getpid []"},
        [],
        "c.yaml:6: seed has the unknown tag !!python/object/apply:os.getpid; only plain YAML values are accepted",
    ),
    "two documents": (
        {"x": "---\nseed: 1"},
        [],
        "c.yaml:6: cannot be read as YAML: expected a single document",
    ),
    "unknown alias": (
        {"seed": "seed: *x"},
        [],
        "c.yaml:6: cannot be read as YAML: found undefined alias 'x' (column 7)",
    ),
    "merge key": (
        {"seed": "train: {<<: {epochs: 3}}"},
        [],
        "c.yaml:6: train.<< is not part of YAML 1.2; put the shared keys into a file of their own",
    ),
    "list for a key": ({"x": "[a]: 3"}, [], "c.yaml:6: a sequence is not a key; keys are text, "),
    # the command line
    "no equals sign after a dot": ({}, ["=3"], "command line: an override is written key=value, got '=3'"),
    "empty part of a key": (
        {},
        ["train..epochs=3"],
        "command line: an override is written key=value, got 'train..epochs=3'",
    ),
    "unreadable value": ({}, ["train.epochs=[1"], "command line: train.epochs cannot be read as YAML: "),
    "no such item": (
        {"optimizer": 'optimizer: {target: a.B, groups: [{match: "a*"}]}'},
        ["optimizer.groups.1.lr_scale=3"],
        "command line: optimizer.groups.1 names no item of the list optimizer.groups, which has 1, counted from 0",
    ),
}


def write(folder: Path, sections: dict[str, str]) -> Path:
    path = folder / "c.yaml"
    path.write_text("\n".join({**SECTIONS, **sections}.values()) + "\n")
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_broken_configuration_gives_one_clear_line_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections, arguments, expected = CASES[case]
    write(tmp_path, sections)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["config", "show", "c.yaml", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0] == expected or (lines[0].startswith(expected) and expected.endswith((" ", "document")))


def test_there_are_more_than_forty_broken_configurations() -> None:
    assert len(CASES) > 40


def test_the_configuration_that_the_cases_break_is_right_itself(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["config", "show", str(write(tmp_path, {}))]).exit_code == 0


def test_all_problems_are_shown_at_once_each_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        {
            "optimizer": "optimizer: {target: torch.optim.SGD, lr: -1}",
            "train": "train: {epochs: x, step: 3, precision: fp32, precision: fp16}",
            "ddp": "ddp: {static_graph: true, sync_batchnorm: true}",
        },
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["train.accumulate_steps=2", "launch.device=cpu", "seed=x"]
    result = CliRunner().invoke(app, ["config", "show", "c.yaml", *arguments])
    shown = {
        tuple(line.split(" ")[:2])
        for line in result.stderr.replace("command line", "command_line").splitlines()
    }
    assert shown == {
        ("c.yaml:6:", "train.precision"),
        ("c.yaml:6:", "train.epochs"),
        ("c.yaml:6:", "train.step"),
        ("command_line:", "seed"),
        ("c.yaml:5:", "optimizer.lr"),
        ("c.yaml:7:", "ddp.static_graph"),
        ("c.yaml:7:", "ddp.sync_batchnorm"),
    }


@pytest.mark.parametrize("name", ["missing.yaml", "folder"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = CliRunner().invoke(app, ["config", "show", str(tmp_path / name)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{tmp_path / name}: cannot be read: ")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"name: \xff\xfe")
    result = CliRunner().invoke(app, ["config", "show", str(path)])
    assert result.stderr == f"{path}: cannot be read: not UTF-8 text\n"


def test_brackets_of_the_user_are_no_markup(tmp_path: Path) -> None:
    path = write(tmp_path, {"seed": "seed: '[red]x[/red]'"})
    result = CliRunner().invoke(app, ["config", "show", str(path)])
    assert "got '[red]x[/red]'" in result.stderr
