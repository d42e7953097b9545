"""Parameters and settings: nothing dropped, nothing secret, nothing that MLflow refuses."""

from pathlib import Path

import pytest
import yaml
from mlflow.utils.validation import (
    MAX_PARAM_VAL_LENGTH,
    path_not_unique,
    validate_param_and_metric_name,
)

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.config.redact import redact
from dist_trainer.errors import CorruptCheckpoint
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.final_model import final_model
from dist_trainer.tracking.parameters import mlflow_name, parameters, redact_yaml
from dist_trainer.tracking.settings import RunSettings, resolve_uri
from tests.tracking.servers import make_run

CONFIG = """\
name: on
seed: 0
model: {target: a.Net, widths: [8, 16], heads: [], extra: {}}
optimizer:
  lr: 3e-4
  betas: [0.9, 0.999]
  groups:
    - {match: "a.*", lr_scale: 10.0}
    - {match: b, betas: [1, 2]}
scheduler: null
launch: {env: {API_TOKEN: "s3cr3t-canary", N: "1"}}
"""


def test_every_value_is_a_parameter_as_it_is_written() -> None:
    assert parameters(CONFIG) == {
        "name": "on",
        "seed": "0",
        "model.target": "a.Net",
        "model.widths": "[8, 16]",
        "model.heads": "[]",
        "model.extra": "{}",
        "optimizer.lr": "3e-4",
        "optimizer.betas": "[0.9, 0.999]",
        "optimizer.groups.0.match": "a.*",
        "optimizer.groups.0.lr_scale": "10.0",
        "optimizer.groups.1.match": "b",
        "optimizer.groups.1.betas": "[1, 2]",
        "scheduler": "null",
        "launch.env.API_TOKEN": "***",
        "launch.env.N": "1",
    }


def test_a_long_value_is_cut_and_says_so() -> None:
    value = parameters(f"notes: {'x' * 7000}\n")["notes"]
    assert len(value) == MAX_PARAM_VAL_LENGTH
    assert value.endswith("cut; whole in config.yaml")
    assert parameters(f"notes: {'x' * 6000}\n")["notes"] == "x" * 6000


@pytest.mark.parametrize(
    "key", ["val/top@5", "a//b", "../x", "/x", ".", "a/..", "k" * 300, "é", "a[0]", "", "$", "a\nb", "x/./y"]
)
def test_any_key_becomes_a_name_that_mlflow_takes_and_no_other_key_has(key: str) -> None:
    name = mlflow_name(key)
    assert validate_param_and_metric_name(name)
    assert not path_not_unique(name)
    assert len(name) <= 250
    assert mlflow_name(key + "@") != name


@pytest.mark.parametrize("key", ["train/loss", "step_time_s/median", "val/f1 score", "optimizer.lr"])
def test_a_good_key_is_left_alone(key: str) -> None:
    assert mlflow_name(key) == key


SECRETS = """\
tracking: {uri: "https://me:canary-1@host:5000/x?token=canary-2&a=1"}
checkpoint: {folder: "s3://bucket/x"}
data:
  train:
    url: postgresql://user:canary-3@db/name
    password: canary-4
    api_key: canary-5
    query: "a=1&key=canary-6"
    auth:
      - canary-7
    note: |
      Bearer canary-8-long-enough
      second line
    access: AKIAABCDEFGHIJKLMNOP
    hf_token: canary-9
    tokenizer: bert
    pad_token: <pad>
    max_tokens: 512
    author: somebody
    keys: [a, b]
"""


def test_no_secret_is_in_parameters_or_the_artifact() -> None:
    shown = redact_yaml(SECRETS)
    for text in (str(parameters(SECRETS)), shown):
        assert "canary" not in text
        assert "AKIA" not in text
    train = yaml.safe_load(shown)["data"]["train"]
    assert train["url"] == "postgresql://***@db/name"
    assert train["note"].endswith("second line\n")
    kept = {
        "tokenizer": "bert",
        "pad_token": "<pad>",
        "max_tokens": 512,
        "author": "somebody",
        "keys": ["a", "b"],
    }
    assert kept.items() <= train.items()
    assert yaml.safe_load(shown)["checkpoint"] == {"folder": "s3://bucket/x"}


def test_a_configuration_without_secrets_is_the_same_text() -> None:
    text = CONFIG.replace("API_TOKEN", "API")
    assert redact_yaml(text) == text


def test_messages_lose_their_secrets_too() -> None:
    message = "GET http://u:p%40x@host/?access_token=abc failed"
    assert redact(message) == "GET http://***@host/?access_token=*** failed"


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///mlflow.db", "sqlite:////work/mlflow.db"),
        ("sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("sqlite:///a/m.db?timeout=5", "sqlite:////work/a/m.db?timeout=5"),
        ("mlruns", "/work/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_relative_stores_are_in_the_working_folder(uri: str, resolved: str) -> None:
    assert resolve_uri(uri, Path("/work")) == resolved


def test_the_settings_find_database_and_checkpoints(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "a", "name: a\n", working_folder=tmp_path)
    settings = RunSettings.read(run)
    assert settings.database == tmp_path / "mlflow.db"
    assert settings.checkpoints == str(run.checkpoints)
    run.config_path.write_text("checkpoint: {folder: ckpt}\ntracking: {uri: null, experiment: on}\n")
    settings = RunSettings.read(run)
    assert (settings.uri, settings.experiment) == (None, "on")
    assert settings.checkpoints == str(tmp_path / "ckpt" / run.info().run_id)


def test_the_final_model_is_the_newest_good_one(tmp_path: Path) -> None:
    def checkpoint(step: int, fence: int) -> Path:
        store = CheckpointStore(Storage(tmp_path), fence=fence, highest_fence=lambda: fence)
        name = store.commit(step, {"model.safetensors": f"{step}".encode()}, {}).name
        return tmp_path / name / "model.safetensors"

    assert final_model(str(tmp_path / "none"), carried=None, into=tmp_path) is None
    checkpoint(900, 1)
    good = checkpoint(300, 2)
    (checkpoint(400, 2).parent / "QUARANTINE.json").touch()
    (checkpoint(500, 3).parent / "COMMIT.json").unlink()
    assert final_model(str(tmp_path), carried="another", into=tmp_path) == (good.parent.name, good)
    assert final_model(str(tmp_path), carried=good.parent.name, into=tmp_path) is None
    for file in ("model.safetensors", "MANIFEST.json", "COMMIT.json"):
        content = (good.parent / file).read_bytes()
        for damaged in (content[:-3], content[:-2] + b"??", b"", None):
            (good.parent / file).write_bytes(damaged or b"")
            if damaged is None and file != "COMMIT.json":
                (good.parent / file).unlink()
            with pytest.raises(CorruptCheckpoint, match=good.parent.name):
                final_model(str(tmp_path), carried=None, into=tmp_path)
        (good.parent / file).write_bytes(content)


@pytest.mark.parametrize(("uri", "seconds"), [("sqlite:///mlflow.db", 60), ("http://127.0.0.1:1", 9)])
def test_a_file_is_waited_for_while_mlflow_starts_and_a_silent_server_is_not(
    tmp_path: Path, uri: str, seconds: float
) -> None:
    assert RunSettings.read(make_run(tmp_path, uri)).patience_s == seconds


@pytest.mark.timeout(30)
@pytest.mark.parametrize("letter", ["x", "x-", "://", ":", "a:", "@", "token=", "key", "://a:b"])
def test_a_message_of_a_megabyte_is_looked_through_in_no_time(letter: str) -> None:
    assert redact(f"://{letter * (1_000_000 // len(letter))}") is not None
