"""A run that goes on with other code than it was trained with says so, and goes on."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from dist_trainer.launchers.existing import nothing_left
from dist_trainer.run_folder import RunFolder
from dist_trainer.trained_code import FILE, TrainedCode, read_trained_code, write_trained_code
from tests.training.small import journal, trainer

pytestmark = pytest.mark.timeout(60)
NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(3, 8), nn.{activation}(), nn.Linear(8, 3))
"""
CHANGED = "the code has changed since attempt 1: nets_of_mine/small.py"
BATCH = {"data.global_batch_size": 6}
STAYS = "; what was trained before stays as it was"
Train = Callable[[int], str]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's in the working folder; its one module is given."""
    (package := tmp_path / "code" / "nets_of_mine").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "small.py").write_text(NET.format(activation="ReLU"))
    monkeypatch.chdir(package.parent)
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    yield package / "small.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "nets_of_mine"]:
        del sys.modules[name]


@pytest.fixture
def train(code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Train to a step; what is printed."""

    def fit(steps: int) -> str:
        model: nn.Module = importlib.import_module("nets_of_mine.small").make()
        trainer(str(tmp_path / "runs"), "r", {"train.steps": steps, **BATCH}, model=model).fit()
        return capsys.readouterr().out

    return fit


def alarms(tmp_path: Path) -> list[str]:
    return [line["message"] for line in journal(tmp_path / "runs", "r") if line["kind"] == "alarm"]


def test_code_that_was_edited_in_place_is_told_once_and_trained(
    code: Path, train: Train, tmp_path: Path
) -> None:
    assert "changed" not in train(2) + train(4)
    code.write_text(NET.format(activation="Tanh"))
    after = "the code has changed since attempt 2: nets_of_mine/small.py" + STAYS
    assert f"warning: {after}\n" in train(6)
    assert alarms(tmp_path) == [after]
    assert "changed" not in train(8)


def test_the_same_code_elsewhere_is_the_same_code(
    code: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(2)
    code.parent.parent.rename(tmp_path / "copy")
    for name in ("nets_of_mine", "nets_of_mine.small"):
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert "changed" not in train(4)
    assert not alarms(tmp_path)


def test_where_nothing_was_saved_nothing_is_said(code: Path, train: Train, tmp_path: Path) -> None:
    code.write_text(NET.format(activation="Linear(9, 8) or nn.ReLU"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(2)
    assert read_trained_code(tmp_path / "runs" / "r") is not None
    code.write_text(NET.format(activation="ReLU"))
    del sys.modules["nets_of_mine.small"]
    assert "changed" not in train(2)
    known = read_trained_code(tmp_path / "runs" / "r")
    assert known is not None and "nets_of_mine/small.py" in known.files
    assert (tmp_path / "runs" / "r" / FILE).stat().st_mode & 0o777 == 0o600


def test_a_finished_run_says_so_without_importing_what_has_changed(
    code: Path, train: Train, tmp_path: Path
) -> None:
    train(2)
    run = RunFolder.open(tmp_path / "runs" / "r")
    assert "\n" not in nothing_left(run)
    code.write_text("raise SystemExit('imported')")
    assert nothing_left(run).endswith(f"\nwarning: {CHANGED}; the results are of the code before")
    code.unlink()
    assert "\n" not in nothing_left(run)


def test_many_files_are_counted() -> None:
    before = TrainedCode(3, {f"m{number}.py": "0" for number in range(7)})
    said = before.changed_to(dict.fromkeys(before.files, "1"))
    assert said == "the code has changed since attempt 3: m0.py, m1.py, m2.py, m3.py, m4.py, and 2 more"
    assert before.changed_to({"m0.py": "0", "new.py": "1"}) == ""


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b.py", "\x1b[2J.py", "a.py\n"])
def test_a_name_that_leads_out_of_the_folder_or_cannot_be_shown_is_not_believed(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no module's file"):
        TrainedCode(1, {name: "0"})
    (tmp_path / FILE).write_text('{"attempt": 1, "files": {"a\\\\u001b.py": "0"}}')
    assert read_trained_code(tmp_path) is None
    write_trained_code(tmp_path, 2, {name: "0", "a.py": "1"})
    assert read_trained_code(tmp_path) == TrainedCode(2, {"a.py": "1"})
