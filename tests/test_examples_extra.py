"""Each example under configs/extra/, with its own library: trained to its goal, resumed, and as a script.

A library or data that is missing skips the test with a line that says so; `make examples-extra` installs them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dist_trainer import Hook, Trainer
from dist_trainer.data import Digits
from tests import real_data

EXTRA = Path(__file__).parents[1] / "configs" / "extra"
pytestmark = [pytest.mark.extra, pytest.mark.timeout(600)]


class Folder:
    """A user's folder with a copy of the examples, in which commands are given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for file in EXTRA.iterdir():
            if file.is_file():
                shutil.copy(file, path)

    def data(self, name: str, made: Path) -> None:
        """Put real data where the examples look for it."""
        (self.path / "data").mkdir(exist_ok=True)
        (self.path / "data" / name).symlink_to(made)

    def run(self, *words: str) -> Any:
        """What a command of dist-trainer says as JSON."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dist_trainer.cli", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def train(self, name: str, *overrides: str) -> dict[str, float]:
        """The run's results."""
        results: dict[str, float] = self.run("train", f"{name}.yaml", "tracking.uri=null", *overrides)[
            "results"
        ]
        print(f"{name}: {results}")
        return results

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        newest = max((self.path / "runs" / run / "checkpoints").glob("step-*"))
        return load_file(newest / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return Folder(tmp_path)


def test_a_model_of_timm_reaches_its_goal(folder: Folder) -> None:
    pytest.importorskip("timm", reason="pip install 'dist-trainer[timm]'")
    folder.data("mnist.npz", real_data.mnist())
    assert folder.train("timm_mnist")["test/accuracy"] >= 0.94


def test_graphs_are_told_apart_and_counted_alike_by_one_rank_and_by_three(folder: Folder) -> None:
    pytest.importorskip("torch_geometric", reason="pip install 'dist-trainer[graph]'")
    assert folder.train("graphs")["test/accuracy"] >= 0.9
    one, three = (folder.run("evaluate", "graphs", "--workers", ranks)["results"] for ranks in ("1", "3"))
    assert one["test/accuracy"] == three["test/accuracy"]
    assert one["test/loss"] == pytest.approx(three["test/loss"], rel=1e-6)


def test_a_rank_without_a_graph_changes_nothing(folder: Folder) -> None:
    pytest.importorskip("torch_geometric", reason="pip install 'dist-trainer[graph]'")
    short = ("data.train.graphs=31", "data.test.graphs=2", "train.epochs=1")  # the second step has one graph
    for ranks in (1, 3):
        folder.train("graphs", *short, f"name=ranks-{ranks}", f"launch.workers_per_node={ranks}")
    one, three = folder.weights("ranks-1"), folder.weights("ranks-3")
    assert all(torch.allclose(one[name], three[name], atol=1e-6) for name in one)


def test_attributions_of_a_trained_net_are_pictures_of_the_report(folder: Folder) -> None:
    pytest.importorskip("captum.attr", reason="pip install 'dist-trainer[captum]'")
    assert folder.train("captum_digits")["test/accuracy"] >= 0.93
    pictures = folder.path / "runs" / "captum-digits" / "report" / "pictures"
    captions = json.loads((pictures / "captions.json").read_text())
    assert (
        set(captions)
        == {path.name for path in pictures.glob("*.png")}
        == {f"digit-{n}.png" for n in range(10)}
    )
    assert all((pictures / name).stat().st_size > 3000 for name in captions)
    assert (pictures / "digit-0.png").stat().st_mode & 0o077 == 0  # for its owner alone, as the run is
    from captum_pictures import DigitsCNN, explain

    model = DigitsCNN()
    model.load_state_dict(folder.weights("captum-digits"))
    digits = Digits(split="test")
    for row in range(20):
        pixels = torch.as_tensor(digits[row][0])
        answer, parts = explain(model.eval(), pixels)
        scores = model(torch.stack([pixels, torch.zeros(64)]))[:, answer].detach()
        assert float(parts.sum()) == pytest.approx(float(scores[0] - scores[1]), rel=0.02), row


class StopAt(Hook):
    """Fails once a step is done, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if step == self.step:
            raise InterruptedError("on purpose")


def fine_tuning(folder: Folder, name: str, hooks: tuple[Hook, ...] = ()) -> Trainer:
    """Four steps of hf_text.yaml, as a script."""
    from hf_text import Logits, Texts, Tokenize, classifier

    torch.manual_seed(0)
    model = classifier("data/minilm", labels=4)
    return Trainer(
        model,
        train=Texts("data/fortunes.csv"),
        collate=Tokenize("data/minilm", length=32),
        task=Logits(torch.nn.CrossEntropyLoss()),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        hooks=hooks,
        name=name,
        steps=4,
        global_batch_size=8,
        settings={"tracking.uri": None, "checkpoint.every_steps": 2, "launch.device": "cpu"},
    )


@pytest.fixture
def texts(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Folder:
    pytest.importorskip("transformers", reason="pip install 'dist-trainer[hf]'")
    folder.data("minilm", real_data.minilm())
    folder.data("fortunes.csv", real_data.fortunes())
    for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # else a thread of its own watches the bars
    return folder


def test_a_fine_tuning_script_goes_on_with_the_same_bits(texts: Folder) -> None:
    assert fine_tuning(texts, "untouched").fit().state == "finished"
    with pytest.raises(InterruptedError):
        fine_tuning(texts, "crashed", hooks=(StopAt(3),)).fit()
    assert fine_tuning(texts, "crashed").fit().state == "finished"
    untouched, resumed = texts.weights("untouched"), texts.weights("crashed")
    assert all(torch.equal(untouched[name], resumed[name]) for name in untouched)


@pytest.mark.timeout(2400)
def test_minilm_learns_four_kinds_of_text_on_two_ranks(texts: Folder) -> None:
    """A linear layer on its frozen features reaches 79.5%, guessing 25%."""
    results = texts.train("hf_text", "launch.workers_per_node=2", "launch.device=cpu")
    assert results["test/accuracy"] >= 0.8
    texts.run("evaluate", "hf-text")
