"""The model registry of a real server: versions of the very files, linked to the run, or one error."""

import json
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dist_trainer.adapters.files import make_private_folder
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking import mlflow_registry
from dist_trainer.tracking.carrier import Unavailable
from dist_trainer.tracking.follower import carrying
from dist_trainer.tracking.mlflow_registry import check_registry, put, register
from dist_trainer.tracking.mlflow_sync import reach
from tests.tracking.servers import Server, make_run

pytestmark = pytest.mark.timeout(120)


def an_export(run: RunFolder, content: str) -> Path:
    folder = run.path / "export" / "onnx"
    make_private_folder(folder)
    (folder / "model.onnx").write_text(content)
    named = {"run": "mine", "run_id": "1f", "step": 3, "checkpoint": "c", "checkpoint_sha256": "d"}
    card = {**named, "exported_as": "onnx", "files": {"model.onnx": {}}}
    (folder / "export.json").write_text(json.dumps(card))
    return folder


def downloaded(server: Server, name: str, version: str) -> str:
    """The model's file of a version, by its own artifact folder."""
    client = MlflowClient(tracking_uri=server.uri)
    source = client.get_model_version(name, version).source
    assert source is not None
    run_id, place = source.split("/artifacts/")[0].rpartition("/")[2], source.split("/artifacts/")[1]
    query = f"run_uuid={run_id}&path={place}/model.onnx"
    with urllib.request.urlopen(f"{server.uri}/get-artifact?{query}") as answer:
        content: bytes = answer.read()
    return content.decode()


def test_each_export_is_a_version_of_its_own_linked_to_the_run(run: RunFolder, server: Server) -> None:
    first = register(run, an_export(run, "one"), "digits")
    assert first.words.startswith(
        "registered as digits, version 1: mlflow artifacts download -u models:/digits/1"
    )
    second = put(run, an_export(run, "two"), "digits")
    assert (second.version, second.run_id) == ("2", run.info().mlflow_run_id)
    assert [downloaded(server, "digits", version) for version in "12"] == ["one", "two"]
    found = MlflowClient(tracking_uri=server.uri).get_model_version("digits", "2")
    assert found.run_id == second.run_id and found.tags["dist_trainer.step"] == "3"
    assert found.description == "mine: step 3 as onnx; see export.json among its files"


def test_a_run_that_another_process_carries_is_put_into_mlflow_by_that_one_alone(
    run: RunFolder, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_registry, "_PATIENCE_S", 0.0)
    folder = an_export(run, "one")
    with carrying(run, patience_s=0.0):
        with pytest.raises(Unavailable, match="the run is not in MLflow yet"):
            put(run, folder, "carried")
        assert run.info().mlflow_run_id is None, "nothing was written into run.json"
        made = reach(run, 30.0).run_id
        assert put(run, folder, "carried").run_id == made
    assert put(run, folder, "carried").run_id == made, "nobody carries it now"


def test_a_server_that_does_not_answer_is_one_error_and_the_files_stay(
    fragile_server: Server, tmp_path: Path
) -> None:
    run = make_run(tmp_path, fragile_server.uri)
    folder = an_export(run, "one")
    with pytest.raises(DistTrainerError, match="--register digits: MLflow did not take it: ") as raised:
        register(run, folder, "digits")
    assert str(raised.value).endswith(f"; the exported files stay in {folder}")
    assert "\n" not in str(raised.value) and (folder / "model.onnx").read_text() == "one"


def test_a_run_without_mlflow_has_no_registry(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tracking\.uri is null"):
        check_registry(RunFolder.create(tmp_path / "r", "tracking: {uri: null}\n", working_folder=tmp_path))
