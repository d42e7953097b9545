"""The main job through the command itself: three ranks, real kills, S3, MLflow; the same weights every time."""

import hashlib
import json
import math
import random
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.adapters.storage import Storage
from tests.launchers.processes import Command, wait_for
from tests.object_store import bucket, open_storage, s3_endpoint  # noqa: F401
from tests.training_command import STEPS, Training

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]


@pytest.fixture
def training(tmp_path: Path) -> Iterator[type[Training]]:
    """Trainings whose every process is gone after the test."""
    started: list[Training] = []

    class Watched(Training):
        def __init__(self, folder: Path, *overrides: str) -> None:
            folder.mkdir(exist_ok=True)
            super().__init__(folder, *overrides)
            started.append(self)

    yield Watched
    for one in started:
        for command in one.commands:
            try:
                left = command.others()
                wait_for(lambda command=command: not command.others(), timeout_s=20, what=f"left: {left}")
            finally:
                command.end()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nobody touched."""
    reference = Training(tmp_path_factory.mktemp("untouched"))
    reference.finish()
    return reference.digest()


def test_a_killed_worker_is_restarted_within_the_command(
    training: type[Training], tmp_path: Path, untouched: str
) -> None:
    one = training(tmp_path)
    command = one.start()
    rank, step = random.Random(1).randrange(3), random.Random(2).randrange(15, 70)
    pid = one.wait_for_step(step, rank)
    command.kill_other(pid)
    assert command.finish(timeout_s=90) == 0
    assert (
        "was killed by SIGKILL" in command.stdout and "Restarting from the last checkpoint" in command.stdout
    )
    assert one.digest() == untouched
    starts = [json.loads(line) for line in one.attempts() if '"start"' in line]
    assert [each["attempt"] for each in starts] == [1, 2]
    assert starts[1]["first_step"] <= step + 1


def test_the_killed_command_leaves_no_process_and_the_next_one_goes_on_in_the_same_mlflow_run(
    training: type[Training], tmp_path: Path, untouched: str
) -> None:
    one = training(tmp_path, "tracking.uri=sqlite:///mlflow.db")
    command = one.start()
    one.wait_for_step(random.Random(3).randrange(25, 80))
    command.send(signal.SIGKILL)
    command.finish()
    # the process that carries metrics to MLflow may take some seconds more to send what there is
    wait_for(lambda: all("mlflow_sync" in line for line in command.others().values()))
    one.finish()
    assert one.digest() == untouched
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        steps = database.execute("select step from metrics where key = 'train/loss' order by step").fetchall()
    database.close()
    assert steps == [(step,) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 75), (signal.SIGUSR2, 75)])
def test_a_stopped_command_saves_and_goes_on(
    training: type[Training], tmp_path: Path, untouched: str, number: signal.Signals, code: int
) -> None:
    one = training(tmp_path)
    command = one.start()
    one.wait_for_step(33)
    command.send_to_group(number)
    assert command.finish() == code
    saved = one.status()["step"]
    assert one.status()["state"] == "stopped" and saved >= 33
    assert f"saved at step {saved}; the same command goes on from there" in command.stdout
    one.finish()
    assert one.digest() == untouched
    again = one.start()
    assert again.finish() == 0
    assert "run run is finished" in again.stdout


def test_checkpoints_in_an_object_store_are_gone_on_from(
    training: type[Training],
    tmp_path: Path,
    untouched: str,
    bucket: str,  # noqa: F811
    open_storage: Callable[..., Storage],  # noqa: F811
) -> None:
    far = f"checkpoint.folder={bucket}/checkpoints"
    one = training(tmp_path, far, "launch.max_restarts=0", "tracking.uri=sqlite:///mlflow.db")
    command = one.start()
    command.kill_other(one.wait_for_step(40, rank=1))
    assert command.finish() == 1
    assert "rank 1 was killed by SIGKILL" in command.stderr
    one.finish()
    run_id = json.loads((one.run / "run.json").read_text())["run_id"]
    storage = open_storage(f"{bucket}/checkpoints/{run_id}")
    newest = max(storage.list())
    (artifact,) = (tmp_path / "mlartifacts").rglob("model.safetensors")
    assert hashlib.sha256(artifact.read_bytes()).hexdigest() == untouched
    assert hashlib.sha256(bytes(storage.read(f"{newest}/model.safetensors"))).hexdigest() == untouched


SCRIPT = """
import torch
from dist_trainer import Trainer
from dist_trainer.training.metrics import Accuracy
from tests.training.recipes import Net, Noisy

torch.manual_seed(0)
model = Net()
trainer = Trainer(
    model,
    train=Noisy(),
    test=Noisy(50, noise=0.0),
    loss=torch.nn.CrossEntropyLoss(),
    metrics={"accuracy": Accuracy()},
    optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
    name="script",
    epochs=3,
    global_batch_size=14,
    settings={"launch.device": "cpu", "tracking.log_every_steps": 1},
)
result = trainer.fit()
rank, accuracy = trainer.attempt.group.rank, result.metrics["test/accuracy"]
# as one write: torchrun runs both ranks unbuffered, and two of each would mix
print(f"rank {rank}: {result.state} {result.step} {accuracy:.2f}\\n", end="")
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_script_of_the_users_own_trains_alone_and_under_torchrun(
    training: type[Training], tmp_path: Path, ranks: int
) -> None:
    one = training(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    for _ in range(2):  # the second time it is finished already, and says the same
        command = Command(sys.executable, *(torchrun if ranks > 1 else []), "script.py", folder=tmp_path)
        one.commands.append(command)
        assert command.finish(timeout_s=90) == 0, command.stderr
        lines = sorted(line for line in command.stdout.splitlines() if re.match(r"rank \d+: ", line))
        accuracy = lines[0].split()[-1]
        assert lines == [f"rank {rank}: finished 24 {accuracy}" for rank in range(ranks)]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        steps = database.execute("select step from metrics where key = 'train/loss' order by step").fetchall()
    database.close()
    assert steps == [(step,) for step in range(1, 25)]


def test_a_changed_configuration_is_refused_with_the_difference(
    training: type[Training], tmp_path: Path, untouched: str
) -> None:
    one = training(tmp_path)
    command = one.start()
    one.wait_for_step(15)
    command.send(signal.SIGINT)
    assert command.finish() == 75
    one.overrides = ("optimizer.lr=0.1", "launch.workers_per_node=2", "tracking.log_every_steps=5")
    refused = one.start()
    assert refused.finish() == 2
    assert "optimizer.lr: 0.05 -> 0.1" in refused.stderr and "--allow-change optimizer.lr" in refused.stderr
    assert "workers_per_node" not in refused.stderr, "another world size needs no flag"
    one.overrides = (*one.overrides, "--allow-change", "optimizer.lr")
    one.finish()
    told = one.commands[-1].stdout
    assert "going on with a changed configuration:\n  optimizer.lr: 0.05 -> 0.1\n" in told, told
    assert one.digest() != untouched
    journal = (one.run / "journal" / "rank-0.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in journal if '"attempt": 2' in line and "learning_rate" in line]
    rates = {line["step"]: line["values"]["learning_rate"] for line in lines}
    # a cosine from 0.1 after 5 steps of warm-up, as if it had been that from the start
    assert rates == pytest.approx({k: 0.05 * (1 + math.cos(math.pi * (k - 6) / (STEPS - 5))) for k in rates})
    assert len(rates) > 5
    one.overrides = ("--fresh",)
    one.finish()
    assert one.digest() == untouched
    assert (tmp_path / "runs" / "run-old-1" / "status.json").exists(), "nothing is deleted"
