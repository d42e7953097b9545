"""The command `init`: what it writes, that it overwrites nothing, and that what it writes trains."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.config.load import load_config
from dist_trainer.new_project.examples import Example, examples
from tests.launchers.processes import Command

ROOT = Path(__file__).parents[2]
FILES = ["train.yaml", "my_project.py", "config.schema.json", ".gitignore", "README.md"]
SINFO = """\
main*|up|infinite|16|32|256000|(null)
gpu|up|2-00:00:00|4|64|515000|gpu:a100:4(S:0-1)
gpu|up|2-00:00:00|1|64|515000|gpu:a100:2
old|down|1:00:00|2|8|16000|(null)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, on a machine without a SLURM."""
    (tmp_path / "nothing").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path / "here")


def answers(folder: Path, **commands: str) -> None:
    """Commands of a SLURM that print these."""
    for name, text in commands.items():
        (folder / f"{name}.txt").write_text(text)
        (folder / name).write_text(f"#!/bin/bash\n/bin/cat {folder}/{name}.txt\n")
        (folder / name).chmod(0o700)


def init(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["init", *arguments])
    assert done.exit_code == code, done.output
    return done


def test_a_project_has_a_configuration_a_module_and_the_next_command() -> None:
    said = init("my demo").stdout
    assert sorted(path.name for path in Path("my demo").iterdir()) == sorted(FILES)
    assert said.splitlines()[-2:] == ["  cd 'my demo'", "  dist-trainer train train.yaml"]
    first, *_ = Path("my demo/train.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=config.schema.json"
    config = load_config(["my demo/train.yaml"]).config
    assert (config.name, config.model.target) == ("my-demo", "my_project.Net")
    schema = json.loads(Path("my demo/config.schema.json").read_text())
    jsonschema.validate(
        yaml.safe_load(Path("my demo/train.yaml").read_text().replace("1e-2", "0.01")), schema
    )


def test_without_a_name_the_current_folder_is_the_project() -> None:
    found = json.loads(init("--json").stdout)
    assert found["folder"] == str(Path.cwd()) and found["files"] == FILES
    assert found["next"] == ["dist-trainer train train.yaml"] and found["run"] == "here"


def test_nothing_is_overwritten_and_what_is_in_the_way_is_named() -> None:
    Path("train.yaml").write_text("mine")
    Path("README.md").symlink_to("nowhere")
    Path("other.txt").write_text("mine")
    said = init(code=2).stderr
    assert f"{Path.cwd()} has train.yaml and README.md already" in said
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["README.md", "other.txt", "train.yaml"]
    assert "is there and no folder" in init("other.txt", code=2).stderr
    init("below/it")
    assert Path("below/it/train.yaml").exists()


@pytest.mark.parametrize("name", ["2024", "1e3", "0x1F", "007", "null", "true", "1.5", "2024-11-29", "yes"])
def test_a_folder_may_be_called_what_yaml_would_read_as_a_number_or_nothing(name: str) -> None:
    init(name)
    assert load_config([f"{name}/train.yaml"]).config.name == name
    assert f"evaluate {name}\n" in Path(name, "README.md").read_text()


@pytest.mark.parametrize("example", examples(), ids=lambda each: each.name)
def test_every_example_of_configs_is_a_project(example: Example) -> None:
    found = json.loads(init("new", "--example", example.name, "--json").stdout)
    assert found["files"][0] == f"{example.name}.yaml" and "my_project.py" not in found["files"]
    ours = load_config([ROOT / "configs" / f"{example.name}.yaml"]).config
    assert load_config([f"new/{example.name}.yaml"]).config == ours
    assert found["run"] == ours.name
    readme = Path("new/README.md").read_text()
    assert "@" not in readme and f"evaluate {ours.name}" in readme
    text = Path(f"new/{example.name}.yaml").read_text()
    assert "configs/" not in text, "its commands are for the folder that it is in now"
    if "path: data/" in text or "series: data/" in text:
        assert example.prepares, "data that has to be made is made by a command in its head"
    assert all(shlex.split(line) for line in example.prepares)
    assert 20 < len(example.about) < 160 and example.about.endswith("."), "its first sentence says what it is"


def test_examples_are_listed_and_an_unknown_one_is_answered_with_the_list() -> None:
    names = [each.name for each in examples()]
    assert {"quickstart", "cifar10_cnn"} <= set(names)
    listed = init("--example").stdout
    assert [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")] == names
    assert all(len(line) < 80 for line in listed.splitlines())
    assert [each["name"] for each in json.loads(init("--json", "--example").stdout)["examples"]] == names
    said = init("x", "--example", "quikstart", code=2).stderr
    assert "did you mean quickstart?" in said and listed in said + "\n"
    assert not list(Path.cwd().iterdir())
    init("y", "--example", "quickstart.yaml")


def test_where_there_is_a_slurm_its_facts_are_in_the_profile(tmp_path: Path) -> None:
    answers(tmp_path / "nothing", sinfo=SINFO, sacctmgr="physics\n")
    said = init("demo").stdout
    assert "slurm.yaml" in said
    text = Path("demo/slurm.yaml").read_text()
    assert "others: main (16 nodes)" in text and "old" not in text
    config = load_config(["demo/train.yaml", "demo/slurm.yaml"]).config
    assert (config.slurm.nodes, config.slurm.partition, config.slurm.time) == (1, "gpu", "1-00:00:00")
    assert config.slurm.options == {"gpus-per-node": 4, "cpus-per-task": 64, "mem": 0, "account": "physics"}
    assert config.launch.device == "cuda"
    assert "dist-trainer submit train.yaml slurm.yaml" in Path("demo/README.md").read_text()


def test_without_accounts_or_gpus_the_profile_goes_without(tmp_path: Path) -> None:
    answers(tmp_path / "nothing", sinfo="one*|up|30:00|2|2|900|(null)\n")
    init("demo")
    config = load_config(["demo/train.yaml", "demo/slurm.yaml"]).config
    assert (config.slurm.partition, config.slurm.time) == ("one", "00:30:00")
    assert config.slurm.options == {"cpus-per-task": 2, "mem": 0}
    assert (config.launch.device, config.launch.workers_per_node) == ("cpu", 1)


def test_a_partition_and_an_account_may_look_like_numbers(tmp_path: Path) -> None:
    answers(tmp_path / "nothing", sinfo="2024*|up|30:00|2|2|900|(null)\n", sacctmgr="00123\n")
    init("demo")
    config = load_config(["demo/train.yaml", "demo/slurm.yaml"]).config
    assert config.slurm.partition == "2024" and config.slurm.options["account"] == "00123"


@pytest.mark.timeout(120)
def test_a_new_project_trains_as_it_is(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Command], tmp_path: Path
) -> None:
    monkeypatch.undo()
    made = command("-m", "dist_trainer.cli", "init", "--json")
    assert made.finish() == 0, made.stderr
    short = [
        "train.epochs=null",
        "train.steps=4",
        "scheduler.warmup_steps=1",
        "train.eval_every_epochs=null",
        "tracking.uri=null",
    ]
    trained = command("-m", "dist_trainer.cli", "train", "train.yaml", *short, "launch.device=cpu", "--json")
    assert trained.finish(timeout_s=100) == 0, trained.stderr
    assert json.loads(trained.stdout)["results"]["test/accuracy"] > 0
    assert (tmp_path / "runs" / json.loads(made.stdout)["run"]).is_dir()
