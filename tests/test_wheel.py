"""The wheel, in an environment that has nothing else of ours: what is in it, and a first project trained from it.

Run by `make test-wheel`: it installs everything that the wheel asks for, torch too.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.new_project.examples import examples

ROOT = Path(__file__).parents[1]
SOURCES = ("dist_trainer", "configs", "pyproject.toml", "README.md", "LICENSE")
INSTALL_S = 1500
QUIETLY = ("--quiet", "--disable-pip-version-check", "--no-input", "--retries", "10")
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]
Run = Callable[..., str]


def call(command: list[str], folder: Path, environment: dict[str, str], *, timeout_s: int = 300) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left in the source tree is no part of it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", *QUIETLY, "--no-deps", "--wheel-dir", str(built), "."]
    call(pip, source, dict(os.environ))
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a shell in which the wheel is installed, and nothing of the source tree can be found."""
    folder = tmp_path_factory.mktemp("environment")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # pip from outside: not every system can put one into a new environment
    call([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder, inherited)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", *QUIETLY]
    call([*pip, str(wheel)], folder, inherited, timeout_s=INSTALL_S)
    return inherited | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """What a command line prints, as typed in an empty folder."""

    def run(line: str) -> str:
        return call(["bash", "-c", line], tmp_path, environment)

    return run


def test_the_package_and_its_data_are_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        first = archive.read("dist_trainer/new_project/configs/quickstart.yaml").decode()
    tops = {name.split("/")[0] for name in names}
    (about,) = tops - {"dist_trainer"}
    assert about.endswith(".dist-info")
    packed = {name for name in names if name.startswith("dist_trainer/")}
    package = [path for path in (ROOT / "dist_trainer").rglob("*") if "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in package if path.is_file()}
    configs = {f"dist_trainer/new_project/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert packed == wanted | configs
    assert {"dist_trainer/py.typed", "dist_trainer/new_project/template/train.yaml"} <= packed
    assert first == (ROOT / "configs" / "quickstart.yaml").read_text()


@pytest.mark.timeout(INSTALL_S + 300)  # the first one installs
def test_the_command_is_there_and_comes_from_the_wheel(run: Run, environment: dict[str, str]) -> None:
    assert "init" in run("dist-trainer --help")
    where = run("python -c 'import dist_trainer; print(dist_trainer.__file__)'")
    assert where.startswith(str(Path(environment["PATH"].split(":")[0]).parent))
    script = run("dist-trainer --show-completion && true")  # more than one command: bash stays, to be found
    assert "_DIST_TRAINER_COMPLETE=complete_bash" in script
    assert json.loads(run("dist-trainer config schema"))["title"] == "dist_trainer configuration"


def test_a_new_project_trains_from_the_wheel_by_the_commands_that_are_printed(run: Run) -> None:
    said = run("dist-trainer init demo")
    lines = [line.strip() for line in said.partition("next:\n")[2].splitlines()]
    assert lines == ["cd demo", "dist-trainer train train.yaml"]
    trained = run(" && ".join(lines))
    assert "training 940 steps with 2 ranks on cpu" in trained and "demo: finished at step 940" in trained
    found = json.loads(run("cd demo && dist-trainer evaluate demo --json"))
    assert found["results"]["test/accuracy"] > 0.9
    assert "optimizer: {" in run("cd demo && dist-trainer tune lr train.yaml --steps 40")


def test_the_quickstart_trains_from_another_folder(run: Run) -> None:
    lines = json.loads(run("dist-trainer init quick --example quickstart --json"))["next"]
    assert "quickstart: finished at step 1230" in run(" && ".join(lines))


def test_every_example_is_there_and_is_a_configuration(run: Run) -> None:
    listed = json.loads(run("dist-trainer init --example --json"))["examples"]
    assert [each["name"] for each in listed] == [each.name for each in examples()]
    for each in listed:
        name = each["name"]
        run(f"dist-trainer init {name} --example {name} && cd {name} && dist-trainer config show {name}.yaml")
