"""A project full of secrets: twenty in the environment, referred to by its configuration and quoted by its errors."""

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIG = """
name: private
model: {target: net.Net, api_key: "${env:MODEL_API_KEY}"}
data:
  train: {target: net.Data, url: "https://me:${env:DATA_PASSWORD}@data.invalid/x?sig=${env:DATA_SIG_TOKEN}"}
  val: {target: net.Data, url: "s3://bucket/${env:DATA_SET}"}
  global_batch_size: 8
task: {target: net.Task}
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
train: {epochs: 2, profile: {steps: [1, 2]}}
checkpoint: {folder: null, every_steps: 4}
launch: {device: cpu, workers_per_node: 3, max_restarts: 0, env: {HF_TOKEN: "${env:MY_HF_TOKEN}"}}
"""
CODE = """
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from dist_trainer.training.task import Supervised


class Net(nn.Module):
    def __init__(self, api_key):
        super().__init__()
        assert api_key == os.environ["MODEL_API_KEY"], "it comes as what it refers to"
        assert os.environ["HF_TOKEN"] == os.environ["MY_HF_TOKEN"]
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs):
        return self.layer(inputs)


class Data(Dataset):
    def __init__(self, url):
        assert "${" not in url
        self.url = url

    def __len__(self):
        return 64

    def __getitem__(self, index):
        values = torch.arange(3.0) * index / 64
        return values, values.sum().reshape(1)


class Task(Supervised):
    steps = 0

    def loss(self, *arguments):
        self.steps += 1
        gate = os.environ.get("GATE")
        if gate and self.steps == 5:
            Path(gate + f".reached-{os.environ['RANK']}").touch()
            while not Path(gate).exists():
                time.sleep(0.02)
        if os.environ.get("FAILS") and self.steps == 5 and os.environ["RANK"] == "1":
            everything = "; ".join(f"{name}={value}" for name, value in os.environ.items())
            try:
                raise KeyError(os.environ["MODEL_API_KEY"])
            except KeyError as error:
                error.add_note(os.environ["AWS_SECRET_ACCESS_KEY"])
                raise RuntimeError(f"cannot reach {os.environ['DATABASE_URL']}: {everything}") from error
        return super().loss(*arguments)
"""
NAMES = [
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "MY_HF_TOKEN", "GITHUB_TOKEN"),
    *(
        "WANDB_API_KEY",
        "OPENAI_API_KEY",
        "DATABASE_URL",
        "MLFLOW_TRACKING_PASSWORD",
        "PGPASSWORD",
        "SMTP_PASS",
    ),
    *(
        "AZURE_CLIENT_SECRET",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SLACK_WEBHOOK",
        "MODEL_API_KEY",
        "DATA_PASSWORD",
    ),
    *("DATA_SIG_TOKEN", "MLFLOW_WORD_SECRET", "DEPLOY_PRIVATE_KEY", "SSH_PASSPHRASE"),
]


def canaries() -> tuple[dict[str, str], dict[str, str]]:
    """The variables that hold secrets, and what must be found nowhere, by the variable's name."""
    values = {name: f"canary{secrets.token_hex(8)}" for name in NAMES}
    forms = {
        "DATABASE_URL": "postgresql://me:{}@db.invalid/x",
        "GITHUB_TOKEN": "ghp_{}abcdef",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=x;AccountKey={};Suffix=core",
        "SLACK_WEBHOOK": "https://hooks.invalid/services/{}",
        "DEPLOY_PRIVATE_KEY": "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
    }
    variables = {name: forms.get(name, "{}").format(value) for name, value in values.items()}
    return {**variables, "DATA_SET": "rows"}, values


def make_project(folder: Path) -> None:
    """The configuration, the code, and a file of secrets beside it. `runs` is a link to a larger disk."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "net.py").write_text(CODE)
    (folder.parent / "disk").mkdir()
    (folder / "runs").symlink_to(folder.parent / "disk")


def found_in(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Where a canary is, in a file's name or its content."""
    return [
        f"{name} in {path}"
        for path in files_below(folder)
        for name, value in wanted.items()
        if value in str(path) or value.encode() in path.read_bytes()
    ]


def files_below(folder: Path) -> Iterator[Path]:
    """Plain files, links not followed."""
    for place, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(place, name)).is_file() and not path.is_symlink())
