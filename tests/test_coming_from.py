"""docs/coming-from.md for real: each peer trains the page's net, and its weights come in with the same outputs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dist_trainer.checkpoint.weights import start_from
from dist_trainer.data import Digits
from tests.test_docs import ROOT, blocks

pytestmark = [pytest.mark.extra, pytest.mark.timeout(300)]
PAGE = ROOT / "docs" / "coming-from.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page."""
    for block in blocks(PAGE):
        if "file" in block.said:
            (tmp_path / block.said["file"]).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "digits_net", raising=False)
    return tmp_path


def skip_without(peer: str) -> None:
    """Looked for and not imported: peers set environment variables when they are."""
    if find_spec(peer) is None:
        pytest.skip(f"{peer} is needed: make examples-extra")


def run(*words: str) -> None:
    """A Python program in the current folder, which may import this file."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    environment = os.environ | own
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def outputs_after(weights: str) -> torch.Tensor:
    """What the net says of the test digits, started from these weights."""
    from digits_net import net

    model = net()
    start_from(model, weights)
    return model(digits()).detach()


def digits() -> torch.Tensor:
    test = Digits(split="test")
    return torch.stack([torch.as_tensor(test[row][0]) for row in range(len(test))])


def theirs(code: str) -> torch.Tensor:
    """What the peer's own model says of them; the code makes it and calls it `model`."""
    inputs = "import torch; from tests.test_coming_from import digits"
    Path("theirs.py").write_text(
        f"{inputs}\n{code}\ntorch.save(model.eval()(digits()).detach(), 'theirs.pt')\n"
    )
    run("theirs.py")
    outputs: torch.Tensor = torch.load("theirs.pt", weights_only=True)
    return outputs


def trains_on(weights: str) -> None:
    """The page's command, shortened."""
    short = ["train.epochs=null", "train.steps=2", "launch.workers_per_node=2", f"model.weights={weights}"]
    run("-m", "dist_trainer.cli", "train", "here.yaml", *short)


def test_weights_of_a_plain_loop_come_in(folder: Path) -> None:
    run("-m", "torch.distributed.run", "--nproc-per-node", "2", "plain_loop.py")
    loaded = "model.load_state_dict({k[7:]: v for k, v in torch.load('plain.pt')['model'].items()})"
    own = theirs(f"from digits_net import net; model = net(); {loaded}")
    assert torch.equal(outputs_after("plain.pt"), own)
    assert (own.argmax(1) == torch.tensor(Digits(split="test").targets)).float().mean() > 0.9
    trains_on("plain.pt")


def test_weights_of_accelerate_come_in(folder: Path) -> None:
    skip_without("accelerate")
    run("with_accelerate.py")
    load = "from accelerate import load_checkpoint_in_model as load; load(model, 'from-accelerate')"
    own = theirs(f"from digits_net import net; model = net(); {load}")
    assert torch.equal(outputs_after("from-accelerate/model.safetensors"), own)
    trains_on("from-accelerate/model.safetensors")


def test_weights_of_lightning_come_in_with_one_setting(folder: Path) -> None:
    skip_without("lightning")
    run("with_lightning.py")
    own = theirs(
        "from with_lightning import DigitsModule as M\n"
        "model = M.load_from_checkpoint('from-lightning.ckpt', weights_only=False).model"
    )
    assert torch.equal(outputs_after("from-lightning.ckpt"), own)
    trains_on("from-lightning.ckpt")
    run("weights_alone.py")
    assert torch.equal(outputs_after("weights.pt"), own)
