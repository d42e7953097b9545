"""What the shells offer at Tab: by the protocol of each, and in a real bash."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from tests.launchers.processes import REPOSITORY

CONFIG = "name: run\noptimizer: {target: torch.optim.SGD, lr: 0.05}\n"
Shell = Callable[..., list[str]]
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two runs and a sweep, a configuration in the folder and two below it."""
    for path in ("runs/digits/run.json", "runs/deep/run.json", "runs/wide/sweep.json", "far/other/run.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "configs").mkdir()
    for path in ("train.yaml", "configs/small.yaml", "configs/large.yaml"):
        (tmp_path / path).write_text(CONFIG)
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the command on the path, as an installation puts it there, and a home of its own."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin" / "dist-trainer"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom dist_trainer.cli import main\nmain()\n")
    program.chmod(0o700)
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


def call(command: list[str], project: Path, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def answer(instruction: str, **variables: str) -> list[str]:
    """What a shell is told, in this process."""
    asked = {"_DIST_TRAINER_COMPLETE": instruction, **variables}
    done = CliRunner().invoke(app, [], env=asked, prog_name="dist-trainer")
    assert (done.exit_code, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


@pytest.fixture
def offered(project: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """What bash is given for the last of these words."""
    monkeypatch.chdir(project)

    def ask(*words: str) -> list[str]:
        given = "\n".join(["dist-trainer", *words])
        return answer("complete_bash", COMP_WORDS=given, COMP_CWORD=str(len(words)))

    return ask


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (("tr",), ["train"]),
        (("tune", ""), ["lr"]),
        (("evaluate", ""), ["deep", "digits"]),
        (("evaluate", "di"), ["digits"]),
        (("evaluate", "--runs", "far", ""), ["other"]),
        (("checkpoint", "verify", "de"), ["deep"]),
        (("sweep", "status", ""), ["wide"]),
        (("cancel", ""), ["deep", "digits", "wide"]),
        (("evaluate", "digits", "--checkpoint", ""), ["last", "best"]),
        (("evaluate", "digits", "--split", "t"), ["train", "test"]),
        (("train", ""), ["configs/", "far/", "runs/", "train.yaml"]),
        (("train", "con"), ["configs/large.yaml", "configs/small.yaml"]),
        (("train", "configs/s"), ["configs/small.yaml"]),
        (("train", "train.yaml", "train.ep"), ["train.epochs=", "train.epochs=null"]),
        (("tune", "lr", "train.yaml", "optimizer.lr"), ["optimizer.lr=", "optimizer.lr=0.05"]),
        (("train", "nosuch.yaml", "optimizer.lr"), []),
        (("train", "notes.t"), []),
        (("train", "~nosuchuser/"), []),
        (("drill", "digits", "--fault", "kill-r"), ["kill-rank"]),
        (("init", "--example", "quick"), ["quickstart"]),
        (("jobs", "x"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_words_that_fit_are_offered(offered: Shell, words: tuple[str, ...], answers: list[str]) -> None:
    assert offered(*words) == answers


def test_a_file_and_the_keys_that_begin_alike_are_offered_together(offered: Shell) -> None:
    found = offered("train", "tr")
    assert found[0] == "train.yaml" and {"train.epochs=", "train.precision="} <= set(found[1:])
    assert not [word for word in found if word.startswith("train.yaml.")]


def test_zsh_and_fish_are_told_what_a_word_means() -> None:
    typed = "dist-trainer train train.yaml train.prec"
    (first, *_) = answer("complete_zsh", _TYPER_COMPLETE_ARGS=typed)
    assert first.startswith("_arguments") and '"train.precision=":"fp16 scales the loss"' in first
    fish = {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert answer("complete_fish", **fish)[0] == "train.precision=\tfp16 scales the loss"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    assert f"_DIST_TRAINER_COMPLETE=complete_{shell}" in "\n".join(answer(f"source_{shell}"))


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_another_shell_than_the_one_around_is_refused(
    option: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", environment["HOME"])
    done = CliRunner().invoke(app, [option, "tcsh"])
    assert done.exit_code == 2 and f"{option} is for the shell that you are in" in done.stderr
    assert [path.name for path in Path(environment["HOME"]).iterdir()] == ["bin"]


BASH = """
source "$HOME/.bashrc"
complete -p dist-trainer
COMP_WORDS=(dist-trainer evaluate di); COMP_CWORD=2
_dist_trainer_completion dist-trainer evaluate di
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_a_real_bash_completes_once_it_is_installed(project: Path, environment: dict[str, str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    # it is the parent of the command, by which that knows what shell is meant
    said = call([bash, "--norc", "-c", "dist-trainer --install-completion; true"], project, environment)
    assert "bash completion installed" in said[0]
    declared, *found = call([bash, "--norc", "-c", BASH], project, environment)
    assert declared.endswith("-F _dist_trainer_completion dist-trainer") and found == ["digits"]
