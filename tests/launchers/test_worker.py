"""The worker by itself, as torchrun starts it: what it leaves in a run folder when it fails."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder, Status
from tests.launchers.processes import Command

pytestmark = pytest.mark.timeout(60)
CONFIG = """
name: test
model: {target: torch.nn.Linear, in_features: 64, out_features: 10}
data: {train: {target: dist_trainer.data.Digits, split: train}, global_batch_size: 50}
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
hooks: [{target: users_hook.Break}]
train: {steps: 5}
tracking: {uri: null}
launch: {device: cpu}
"""
HOOK = """
import sys
from dist_trainer.training.hooks import Hook

class Break(Hook):
    def on_step(self, trainer, step, result):
        if step == 3:
            BREAK
"""
Start = Callable[[str], Command]


@pytest.fixture
def start(command: Callable[..., Command], run: RunFolder, tmp_path: Path) -> Start:
    """Start one worker whose hook does something at step 3."""
    run.config_path.write_text(CONFIG)

    def begin(what: str) -> Command:
        (tmp_path / "users_hook.py").write_text(HOOK.replace("BREAK", what))
        return command("-m", "dist_trainer.worker", run.path)

    return begin


def test_a_worker_that_is_refused_leaves_the_live_run_as_it_is(start: Start, run: RunFolder) -> None:
    with run.lock():
        attempt = run.new_fence({"pid": 1, "host": socket.gethostname()})
        run.write_status(Status("running", step=0))
        before = run.status_path.read_bytes()
        second = start("pass")
        assert second.finish() == 2
        assert "is being trained by pid" in second.stderr
        assert run.status_path.read_bytes() == before
        assert run.read_errors(attempt) == []


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise ValueError('a mistake')", "a mistake"),
        ("sys.exit(0)", "sys.exit(0) was called before the work was over"),
    ],
)
def test_a_worker_whose_attempt_began_leaves_word(
    start: Start, run: RunFolder, what: str, message: str
) -> None:
    worker = start(what)
    assert worker.finish() == 1
    assert message in worker.stderr
    (error,) = run.read_errors(1)
    assert (error.message, error.rank) == (message, 0)
    assert (run.read_status().state, run.read_status().reason) == ("failed", message)
