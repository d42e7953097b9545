"""Secrets: refused where they are written out, referred to by `${env:NAME}`, blotted out of messages."""

import json
from pathlib import Path

import pytest
import torch

from dist_trainer.config.check import check_targets
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.config.redact import is_secret, redact, redact_value
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import Config
from dist_trainer.config.targets import build
from dist_trainer.errors import ConfigError
from dist_trainer.training.settings import make_settings
from tests.slurm.fake_slurm import config_text


def load(tmp_path: Path, *values: str) -> Config:
    (tmp_path / "c.yaml").write_text(config_text())
    return load_config([tmp_path / "c.yaml"], values).config


@pytest.mark.parametrize(
    "value",
    [
        "model.api_key=abcdef",
        "model.password=x",
        "data.train.auth_token=abc",
        "data.train.options={secret: {key: v}, client_secret: v}",
        "launch.env={HF_TOKEN: hf_abc}",
        "launch.env={AWS_SECRET_ACCESS_KEY: abc}",
        "tracking.uri=http://me:hunter2@host/",
        "data.train.url=postgresql://me:p%40ss@host/db",
        "data.train.url=https://host/x?sig=abcdef&a=1",
        "data.train.note=AKIAABCDEFGHIJKLMNOP",
        "data.train.list=[a, ghp_abcdefghijklmnop1234]",
        "data.train.header='Bearer abcdefghijklmnop1234'",
        "optimizer.groups=[{match: a, api_key: abc}]",
        "model.api_key=abc${env:HOME}",
    ],
)
def test_a_secret_that_is_written_out_is_refused_without_being_shown(value: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is or holds a secret, .* write \$\{env:NAME\} in its place"
    ) as caught:
        load(tmp_path, value)
    assert str(caught.value).startswith("command line: ")
    assert not any(word in str(caught.value) for word in ("abc", "hunter2", "p%40ss", "AKIA"))


@pytest.mark.parametrize(
    "value",
    [
        "model.tokenizer=bert",
        "model.max_tokens=512",
        "model.pad_token=<pad>",
        "model.author=somebody",
        "model.key=left",
        "model.use_auth=true",
        "model.secret_size=3",
        "data.train.private_key=/home/me/key.pem",
        "data.train.credentials=~/.config/gcs.json",
        "data.train.url=https://user@host/x",
        "data.train.url=s3://bucket/monkey=1/x",
        "model.api_key=${env:MY_KEY}",
        "tracking.uri=http://me:${env:WORD}@host/",
        "tracking.uri=${env:WHOLE}",
        "checkpoint.folder=${env:SCRATCH}/checkpoints",
        "launch.env={HF_TOKEN: '${env:HF}'}",
        "data.train.url=https://host/x?sig=${env:SIG}",
    ],
)
def test_what_is_no_secret_or_a_reference_is_taken_and_written_as_it_is(value: str, tmp_path: Path) -> None:
    config = load(tmp_path, value)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config([path]).config == config


@pytest.mark.parametrize(
    "key", ["slurm.partition", "slurm.options.account", "tracking.experiment", "model.target"]
)
def test_a_reference_where_nobody_would_put_its_value_in_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot hold \$\{env|must be an import path"):
        load(tmp_path, f"{key}=${{env:HOME}}")


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "SSHPASS", "GITHUB_PAT", "WANDB_KEY", "SLACK_WEBHOOK", "HF_TOKENS", "SMTP_PASS"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_variable_for_the_workers_that_is_a_secret_by_its_name_is_refused(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"launch\.env\.{name} is or holds a secret") as caught:
        load(tmp_path, f"launch.env={{{name}: hunter2}}")
    assert "hunter2" not in str(caught.value)
    assert redact_value(f"launch.env.{name}", "hunter2") == "***"
    assert redact_value(f"launch.env.{name}", "${env:WORD}") == "${env:WORD}"
    load(tmp_path, f"launch.env={{{name}: '${{env:WORD}}'}}")


@pytest.mark.parametrize(
    "setting",
    [
        *("OMP_NUM_THREADS=4", "NCCL_SOCKET_IFNAME=eth0", "PYTHONPATH=/home/me/code", "KEYBOARD=dvorak"),
        *("TOKENIZERS_PARALLELISM=false", "MAX_TOKENS=512", "HF_HUB_DISABLE_IMPLICIT_TOKEN=1"),
        *("COMPASS=north", "PATTERN=ab", "AUTHOR=me", "SSH_AUTH_SOCK=/run/agent", "SEND_TOKENS=0"),
    ],
)
def test_an_ordinary_variable_for_the_workers_is_taken(setting: str, tmp_path: Path) -> None:
    name, _, value = setting.partition("=")
    assert load(tmp_path, f"launch.env={{{name}: '{value}'}}").launch.env == {name: value}


def test_python_settings_are_no_way_around_it() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri is or holds a secret"):
        make_settings({"tracking.uri": "http://me:word@host/"}, {})


def test_a_reference_is_put_in_where_the_target_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDTH_TEXT", "seven")
    nested = {"a": ["${env:WIDTH_TEXT}", 1, {"b": "x-${env:WIDTH_TEXT}-y"}]}
    assert resolve(nested) == {"a": ["seven", 1, {"b": "x-seven-y"}]}
    monkeypatch.setenv("DEVICE_NAME", "meta")
    layer = build(
        {"target": "torch.nn.Linear", "in_features": 2, "out_features": 1, "device": "${env:DEVICE_NAME}"}
    )
    assert layer.weight.device == torch.device("meta")


def test_a_reference_to_nothing_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    config = load(tmp_path, "tracking.uri=http://me:${env:NOT_THERE}@host/")
    assert check_targets(config) == [
        (
            "tracking.uri",
            "refers to the environment variable NOT_THERE, which is not set; export it before the command",
        )
    ]
    with pytest.raises(
        ConfigError, match=r"^\$\{env:NOT_THERE\} refers to the environment variable NOT_THERE"
    ):
        resolve("${env:NOT_THERE}")


@pytest.mark.parametrize(
    "name", ["API_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "STRIPE_KEY", "SMTP_PASS"]
)
def test_values_of_secret_variables_are_blotted_out_wherever_they_stand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "first line of it\nand/a second+one")
    said = "it was first line of it\nand/a second+one, or and/a second+one, or and%2Fa%20second%2Bone"
    assert redact(said) == "it was ***, or ***, or ***"
    assert redact(repr("first line of it\nand/a second+one")) == "'***'"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["://", "?a", "&token", "a:b@", "://a:", "bearer ", f"{'x' * 64}?", "-", "${env:A}"]
)
def test_a_long_text_is_looked_through_in_no_time(text: str) -> None:
    """A pattern that goes back and forth would take hours."""
    redact(text * (1_000_000 // len(text)))
    is_secret("data.train.note", text * (1_000_000 // len(text)))


def test_a_password_in_a_variables_url_is_blotted_out_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE", "postgresql://me:long-enough-word@host/x")
    assert redact("refused long-enough-word for me") == "refused *** for me"


def test_what_only_sounds_like_a_secret_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))  # where it is, and not what it is
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false and so on")
    monkeypatch.setenv("OLDPWD", "/no/such/folder/any/more")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    said = f"{tmp_path} false and so on /no/such/folder/any/more abc key=value"
    assert redact(said) == said


def test_a_value_in_a_message_about_a_configuration_is_shown_without_its_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"train.epochs={json.dumps('http://me:word@host/')}")
    assert "got 'http://***@host/'" in str(caught.value)
