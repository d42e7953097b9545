"""A Trainer in a real Jupyter kernel: its progress and plot, interrupts, errors, and one training after another."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.extra,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what jupyter's own libraries call is theirs
]
NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SETUP = """
import signal, time
import torch
from torch import nn
from torch.utils.data import TensorDataset
from dist_trainer import Hook, Trainer

rows = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))

class Slow(Hook):
    def on_step(self, trainer, step, result):
        time.sleep(pause_s)

class Fail(Hook):
    def on_step(self, trainer, step, result):
        if step == 3:
            raise ValueError("on purpose")

def training(name, *hooks, steps):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return Trainer(
        model, train=rows, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        name=name, steps=steps, hooks=hooks, global_batch_size=8, settings={"tracking.uri": None},
    )
"""


@dataclass
class Outputs:
    """What a cell printed, showed and raised."""

    text: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class Kernel:
    """A kernel of its own in a folder, asked as a notebook asks it."""

    def __init__(self, folder: Path) -> None:
        manager = pytest.importorskip("jupyter_client", reason="pip install 'dist-trainer[notebook]'")
        self._manager = manager.KernelManager(kernel_name="python3")
        self._manager.start_kernel(cwd=str(folder))
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def run(self, code: str, while_running: Callable[[Outputs], None] = lambda outputs: None) -> Outputs:
        """Execute a cell; `while_running` is called after each message of it."""
        self._client.execute(code)
        outputs = Outputs()
        while True:
            message = self._client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                outputs.text += content["text"]
            elif kind in ("display_data", "update_display_data", "execute_result"):
                outputs.shown.append(content["data"])
            elif kind == "error":
                outputs.error = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return outputs
            while_running(outputs)

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    started = Kernel(tmp_path)
    try:
        assert not started.run(SETUP).error
        yield started
    finally:
        started.close()


def once(condition: Callable[[Outputs], bool], act: Callable[[], None]) -> Callable[[Outputs], None]:
    """Act the first time that the outputs are so."""
    done: list[bool] = []

    def look(outputs: Outputs) -> None:
        if not done and condition(outputs):
            done.append(True)
            act()

    return look


def bars(outputs: Outputs) -> list[str]:
    return [data["text/plain"] for data in outputs.shown if "<progress" in data.get("text/html", "")]


def test_the_notebook_of_the_guide_runs_and_shows_its_progress_and_its_curves(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'dist-trainer[notebook]'")
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained, plotted, longer = (
        cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs
    )
    assert "finished at step 450" in text_of(trained)
    assert [data["text/plain"] for data in data_of(trained)][-2:-1] == ["step 450/450, finished"]
    (picture,) = data_of(plotted)
    assert len(picture["image/png"]) > 10_000
    assert "going on at step 450 of 675 steps" in text_of(longer)
    shutil.rmtree(tmp_path / "runs")


def text_of(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def data_of(outputs: list[Any]) -> list[Any]:
    return [output.data for output in outputs if output.output_type != "stream"]


def test_an_interrupt_stops_and_saves_and_the_same_cell_goes_on(kernel: Kernel) -> None:
    cell = "result = training('long', Slow(), steps=40).fit()\nresult.state"
    before = kernel.run("pause_s = 0.2\nhandler = signal.getsignal(signal.SIGINT)")
    assert not before.error
    stopped = kernel.run(cell, once(lambda outputs: len(bars(outputs)) > 2, kernel.interrupt))
    assert (stopped.error, stopped.shown[-1]["text/plain"]) == ("", "'stopped'")
    assert bars(stopped)[-1].endswith("/40, stopped")
    told = kernel.run("pause_s = 0\nprint(signal.getsignal(signal.SIGINT) is handler, result.step)")
    is_restored, step = told.text.split()
    assert is_restored == "True" and 0 < int(step) < 40
    finished = kernel.run(cell)
    assert f"going on at step {step} of 40 steps" in finished.text
    assert finished.shown[-1]["text/plain"] == "'finished'"


def test_a_second_interrupt_ends_the_cell_and_not_the_kernel(kernel: Kernel) -> None:
    def twice() -> None:
        kernel.interrupt()
        time.sleep(1.5)  # within a second it would be the same request
        kernel.interrupt()

    kernel.run("pause_s = 4")
    ended = kernel.run(
        "training('stuck', Slow(), steps=9).fit()", once(lambda outputs: len(bars(outputs)) > 0, twice)
    )
    assert ended.error.startswith("KeyboardInterrupt")
    kernel.run("pause_s = 0")
    assert "finished at step 9" in kernel.run("training('stuck', Slow(), steps=9).fit();").text


def test_loader_processes_read_a_data_set_of_a_cell(kernel: Kernel) -> None:
    data = """
class Squares(torch.utils.data.Dataset):
    def __len__(self): return 32
    def __getitem__(self, i): return torch.full((4,), float(i)), i % 2
rows = Squares()
"""
    code = "settings={'tracking.uri': None, 'data.num_workers': 2}"
    kernel.run(SETUP.replace('settings={"tracking.uri": None}', code))
    trained = kernel.run(f"{data}\ntraining('forked', steps=6).fit()")
    assert trained.error == "" and "finished at step 6" in trained.text
    again = kernel.run("training('forked', steps=6).fit()")
    assert again.error == "", "a finished run says so"
    print(again.text)


def test_after_an_error_the_kernel_trains_again_the_same_run_and_others(kernel: Kernel) -> None:
    failed = kernel.run("training('failing', Fail(), steps=9).fit()")
    assert failed.error == "ValueError: on purpose"
    again = kernel.run("training('failing', steps=9).fit()\ntraining('other', steps=9).fit().plot()")
    assert again.error == ""
    assert "failing: finished at step 9" in again.text and "other: finished at step 9" in again.text
    assert "image/png" in again.shown[-1]
    count = "import torch.distributed as d, threading\nprint(d.is_initialized(), threading.active_count())"
    left = kernel.run(count).text
    kernel.run("training('third', steps=2).fit()")
    assert left.startswith("False")
    assert kernel.run(count).text == left, "a training leaves threads behind"
