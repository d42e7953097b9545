"""The command: what it writes and where, what travels along, and what it refuses before anything starts."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dist_trainer.adapters.files import write_json
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.cli import app
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.data import CSV, Arrays, Digits, Windows, sine, split_dataset
from dist_trainer.errors import CorruptCheckpoint, ExportError, UsageError
from dist_trainer.export.card import preprocessing
from dist_trainer.export.exporting import Exported, export
from dist_trainer.export.loading import compare
from dist_trainer.export.place import CARD
from dist_trainer.export.request import FILES, make_request, read_answer
from dist_trainer.export.screen import words
from dist_trainer.export.writer import write
from dist_trainer.run_folder import RunFolder
from dist_trainer.shown_samples import class_names
from tests.export.runs import ROOT, make_run, text_of, weights, write_request

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "project", text_of("Normed"))


def exported(run: RunFolder, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", str(run.path), *arguments])


def test_weights_are_read_by_anybody_and_what_they_need_travels_along(tmp_path: Path) -> None:
    average = {"layers.0.bias": torch.full((3,), 0.25)}
    config = f"{text_of('Normed')}train: {{ema_decay: 0.9, precision: bf16}}\n"
    run = make_run(tmp_path / "project", config, average=average)
    folder = run.path / "export" / "state_dict"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("of an earlier export into the same folder")
    (folder / "notes.txt").write_text("nobody's business")
    earlier = {"run_id": run.info().run_id, "files": {"model.safetensors": {}}}
    write_json(folder / CARD, earlier)
    found = json.loads(exported(run, "--format", "state_dict", "--json").stdout)
    assert found["folder"] == str(folder) and json.loads((folder / CARD).read_text())["step"] == 3
    state = weights(folder / "model.pt")
    assert torch.equal(state["layers.0.bias"], average["layers.0.bias"]), "what its evaluations use"
    assert state.keys() >= {"layers.1.running_mean", "layers.1.num_batches_tracked"}
    assert (found["weights"], found["trained_with"], found["checkpoint"]) == (
        "averaged",
        "bf16",
        "step-000000003-f0001",
    )
    assert found["inputs"] == [
        {"name": "images", "shape": ["batch", 2, 5, 5], "dtype": "float32", "given": "by position"}
    ]
    assert found["outputs"] == [{"name": "output", "shape": ["batch", 2], "dtype": "float32"}]
    assert (found["classes"], found["preprocessing"]) == (["no", "yes"], [{"subtract": 3.0}])
    assert found["checked"]["largest_difference"] <= 1e-5
    assert {(folder / name).stat().st_mode & 0o777 for name in (CARD, "model.pt")} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == [CARD, "model.pt", "notes.txt"]
    assert found["removed"] == ["model.safetensors"]
    said = words(Exported(folder, found, tuple(found["removed"])))
    assert "of the earlier export there: model.safetensors is gone" in said
    assert said.startswith("run: step 3 as state_dict, ")
    assert "loaded again in the run's model built anew: batches of 1 and 7 give the same" in said
    assert "Training computed in bf16 by autocast" in said


def test_weights_are_called_averaged_where_an_average_was_loaded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "project", f"{text_of('Normed')}train: {{ema_decay: 0.9}}\n", average=None)
    write_request(run, tmp_path, "state_dict")
    write(tmp_path)
    assert read_answer(tmp_path)["card"]["weights"] == "trained", "the checkpoint has no average"


def test_what_gives_other_outputs_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "project", text_of("OfOneSize"))
    with pytest.raises(
        ExportError, match="does not give the same for a batch of 1: output 0 differs by up to"
    ):
        export(run, make_request(run.path, "torchscript", "trace", "last"), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_a_damaged_checkpoint_is_not_exported_and_none_that_is_not_there(
    run: RunFolder, tmp_path: Path
) -> None:
    store = open_store(run, CheckpointConfig())
    path = run.checkpoints / store.list()[0].name / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    make_request(run.path, "safetensors", None, "last").write(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="checkpoint verify"):
        write(tmp_path)
    make_request(run.path, "safetensors", None, "7").write(tmp_path)
    with pytest.raises(UsageError, match="--checkpoint 7: no such checkpoint; there are steps 3"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--format", "onxx"],
            "--format must be one of state_dict, safetensors, torch-export, onnx, torchscript, got",
        ),
        (["--format", "onnx", "--method", "script"], "--method script: is for --format torchscript alone"),
        (["--format", "torchscript", "--method", "guess"], "--method must be trace or script, got 'guess'"),
        (["--format", "onnx", "--register", "x"], "--register: tracking.uri is null"),
    ],
)
def test_what_cannot_be_asked_for_is_said_with_the_remedy(
    run: RunFolder, options: list[str], said: str
) -> None:
    refused = exported(run, *options)
    assert refused.exit_code == 2 and refused.stderr.startswith(said)
    assert not (run.path / "export").exists()


def test_onnx_without_its_packages_names_the_command_that_installs_them(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    refused = exported(run, "--format", "onnx")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("--format onnx needs onnxscript: pip install 'dist-trainer[onnx]'")


def test_a_run_that_python_began_is_refused_with_the_way_to_go(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "mine", "name: mine\n", working_folder=ROOT)
    with pytest.raises(UsageError, match="was begun from Python, so its model is in no configuration"):
        export(run, make_request(run.path, "safetensors", None, "last"), None)


def test_outputs_are_compared_by_their_own_size() -> None:
    large = np.array([1000.0, -2.0])
    assert compare([large], [large + 0.009], 1e-5) == (pytest.approx(9e-6), None)
    share, problem = compare([large], [large + 0.011], 1e-5)
    assert share > 1e-5 and problem == "output 0 differs by up to 0.011 where its largest value is 1e+03"
    assert compare([np.zeros(2)], [np.full(2, 1e-6)], 1e-5)[1] is None
    assert compare([np.array([1, 2])], [np.array([1, 3])], 1e5)[1] is not None, (
        "whole numbers are equal or not"
    )
    with_nan = np.array([np.nan, np.inf, 1.0])
    assert compare([with_nan], [with_nan.copy()], 1e-5) == (0.0, None)
    assert compare([with_nan], [np.array([0.0, np.inf, 1.0])], 1e-5)[1] is not None
    assert "shape (2, 1)" in (compare([large], [large[:, None]], 1e-5)[1] or "")
    whole = np.array([1, 2])
    assert compare([whole], [whole.astype(np.float32)], 1e-5)[1] == (
        "output 0 is float32, the run's model gives int64"
    )
    assert "1 outputs" in (compare([large, large], [large], 1e-5)[1] or "")


def test_data_sets_say_what_they_do_to_a_sample(tmp_path: Path) -> None:
    images = np.arange(96, dtype=np.uint8).reshape(4, 2, 2, 6)
    np.savez(tmp_path / "a.npz", x=images, y=np.array(["cat", "dog", "cat", "dog"]))
    arrays = Arrays(tmp_path / "a.npz", normalize={"mean": 0.5, "std": [0.5, 0.25]})
    part = split_dataset(arrays, {"val": 0.5}, 0)["val"]
    assert class_names(part) == ["cat", "dog"]
    assert preprocessing(part) == [
        {"divide_by": 255.0},
        {"subtract": 0.5, "divide_by": [0.5, 0.25], "dimension": 1},
        {"layout": ["rows", "channels", "height", "width"]},
    ]
    assert preprocessing(Digits()) == [{"divide_by": 16.0}] and class_names(Digits()) is None
    window = Windows(sine(40), length=4, standardize=True)
    assert preprocessing(window) == [
        {"subtract": window.mean, "divide_by": window.deviation, "outputs": "likewise"}
    ]
    (tmp_path / "t.csv").write_text("a,b,c\n1,x,no\n3,y,yes\n5,x,no\n")
    columns, scale = preprocessing(CSV(tmp_path / "t.csv", label="c", categorical=["b"]))
    assert columns == {"columns": ["a", "b=x", "b=y"]}
    assert scale["subtract"] == pytest.approx([3, 2 / 3, 1 / 3]) and len(scale["divide_by"]) == 3


def test_every_format_has_a_file_of_its_own() -> None:
    assert len(set(FILES.values())) == len(FILES) and CARD not in FILES.values()
