"""The folder of an export: its own files are replaced there, and nothing else is ever touched."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.adapters.files import write_json
from dist_trainer.errors import UsageError
from dist_trainer.export.exporting import Exported
from dist_trainer.export.place import CARD, check_place, own_files, put, work_folder
from dist_trainer.export.request import FILES, ONNX_WEIGHTS
from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command

WAITS_FOR_THE_WRITER = """
import sys, time
from pathlib import Path
from dist_trainer.export import exporting
from dist_trainer.export.request import make_request
from dist_trainer.run_folder import RunFolder

def written(run, work):
    (work / "made").mkdir()
    (work / "made" / "model.pt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

exporting._written = written
run = RunFolder.open(sys.argv[1])
exporting.export(run, make_request(run.path, "state_dict", None, "last"), Path(sys.argv[2]))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(
        tmp_path / "runs" / "r", "name: r\nmodel: {target: mine.Model}\n", working_folder=tmp_path
    )


def export(run: RunFolder, folder: Path, *names: str) -> Exported:
    """What the command does to the folder, for files that hold their own names."""
    with work_folder(run, folder) as work:
        (work / "made").mkdir()
        for name in names:
            (work / "made" / name).write_text(f"{name}, made anew")
        card: dict[str, Any] = {"run_id": run.info().run_id, "files": {name: {"size": 1} for name in names}}
        return Exported(folder, card, put(run, work / "made", card, folder))


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_takes_the_place_of_an_earlier_one_and_says_which_files_went(
    run: RunFolder, tmp_path: Path
) -> None:
    assert export(run, tmp_path, "model.onnx", ONNX_WEIGHTS).removed == ()
    assert export(run, tmp_path, "model.onnx").removed == (ONNX_WEIGHTS,), (
        "a stale one would be loaded with it"
    )
    assert export(run, tmp_path, "model.pt").removed == ("model.onnx",)
    assert there(tmp_path) == [CARD, "model.pt", "runs"]


@pytest.mark.parametrize("name", [*FILES.values(), ONNX_WEIGHTS])
def test_a_file_of_somebody_else_is_refused_beside_an_export_of_the_run_too(
    run: RunFolder, tmp_path: Path, name: str
) -> None:
    export(run, tmp_path, next(other for other in FILES.values() if other != name))
    (tmp_path / name).write_text("mine")
    before = there(tmp_path)
    with pytest.raises(UsageError) as raised:
        export(run, tmp_path, "model.onnx")
    assert str(raised.value).startswith(
        f"{tmp_path / name} is there already, and is no export of run r; move it"
    )
    assert (tmp_path / name).read_text() == "mine" and there(tmp_path) == before


def test_an_export_of_another_run_is_refused_and_so_is_a_card_that_is_none(
    run: RunFolder, tmp_path: Path
) -> None:
    for card in ({"run_id": "another", "files": {}}, [], {"files": ["model.pt"]}):
        write_json(tmp_path / CARD, card)
        with pytest.raises(UsageError, match=r"export\.json is there already"):
            check_place(run, tmp_path)
    write_json(
        tmp_path / CARD, {"run_id": run.info().run_id, "files": {"../x": {}, "runs": {}, "model.pt": {}}}
    )
    assert own_files(run, tmp_path) == {CARD, "model.pt"}, "whatever a card names, it is no other file"


def test_an_export_that_is_cut_short_while_its_files_are_moved_leaves_a_folder_for_the_next_one(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, tmp_path, "model.safetensors")
    real: Callable[..., Path] = Path.replace

    def cut(path: Path, target: Path) -> Path:
        if target.name == ONNX_WEIGHTS:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", cut)
        export(run, tmp_path, "model.onnx", ONNX_WEIGHTS)
    assert (tmp_path / "model.safetensors").exists(), "what was there goes once the new is there"
    assert "cut short" in json.loads((tmp_path / CARD).read_text())["unfinished"]
    assert export(run, tmp_path, "model.pt").removed[-1] == "model.safetensors"
    assert there(tmp_path) == [CARD, "model.pt", "runs"]


def test_a_failure_leaves_no_folder_that_was_not_there(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), work_folder(run, tmp_path / "deep" / "out"):
        raise ZeroDivisionError
    assert there(tmp_path) == ["runs"]


def test_two_exports_do_not_work_in_one_folder_and_what_a_killed_one_left_goes(
    run: RunFolder, tmp_path: Path
) -> None:
    stale = tmp_path / ".dist-trainer-export-killed"
    stale.mkdir()
    (stale / "model.pt").write_text("half")
    with work_folder(run, tmp_path):
        assert not stale.exists()
        with pytest.raises(
            UsageError, match="exports into it just now; wait for it, or give another --output"
        ):
            export(run, tmp_path, "model.pt")
    assert there(tmp_path) == ["runs"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_told_to_end_leaves_nothing_in_the_folder(
    run: RunFolder, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = [sys.executable, "-c", WAITS_FOR_THE_WRITER, str(run.path), str(tmp_path / "out")]
    command = Command(*arguments, folder=tmp_path)
    assert command.process.stdout is not None and command.process.stdout.readline() == "writing\n"
    command.send(number)
    assert command.finish() == -number, command.stderr
    assert there(tmp_path) == ["runs"]
