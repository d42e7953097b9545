"""What benchmarks/gpu.py does, tried without a GPU: a small net goes the same way on the CPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import by_hand, gpu, on_device
from benchmarks.by_hand import cropped, flipped, prepared, reading
from benchmarks.on_device import NORMALIZE, PADDING, TINY, Work, hidden_share, write_images
from dist_trainer.data import Arrays

ROOT = Path(__file__).parents[1]
_WITHOUT = "import sys; sys.modules.update(mlflow=None, submitit=None); from benchmarks.gpu import main"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_and_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert gpu.main(["--device", "cpu"]) == 2
    assert "--tiny" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_all_of_it_runs_on_a_cpu_without_mlflow_and_submitit(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--tiny", "--rounds", "1", "--mode", "eager"]
    done = subprocess.run(
        [sys.executable, "-c", f"{_WITHOUT}; sys.exit(main({arguments}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    names = [line.split(" | ")[0] for line in table[2:]]
    assert len(names) == 5, done.stdout
    for word in ("synthetic", "CIFAR-10", "waiting for data", "a save of 1 MB"):
        assert any(word in name for name in names)


def test_what_cannot_be_measured_is_said_and_the_rest_is(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[Any]:
        raise RuntimeError("no graph could be captured")

    assert gpu.attempt("CUDA graphs", broken) == []
    assert "CUDA graphs: could not be measured: RuntimeError: no graph" in capsys.readouterr().out


def test_copies_beside_kernels_are_told_from_a_trace() -> None:
    def event(category: str, start: float, duration: float, name: str = "", size: int = 0) -> dict[str, Any]:
        return {"cat": category, "ts": start, "dur": duration, "name": name, "args": {"bytes": size}}

    copy = "Memcpy HtoD (Pinned -> Device)"
    kernels = [event("kernel", 0, 6), event("kernel", 4, 4), event("kernel", 20, 10)]
    copies = [event("gpu_memcpy", 6, 4, copy, 1 << 20), event("gpu_memcpy", 25, 4, copy, 1 << 20)]
    passed_over = [
        event("gpu_memcpy", 10, 9, copy, 8),
        event("gpu_memcpy", 10, 9, "Memcpy DtoH", 1 << 20),
        {"ph": "M", "name": "process_name"},
    ]
    assert hidden_share([*kernels, *copies, *passed_over]) == pytest.approx(6 / 8)
    assert hidden_share(kernels) is None


def test_the_loop_by_hand_trains_on_the_numbers_that_the_trainer_does(tmp_path: Path) -> None:
    file = write_images(tmp_path / "images.npz", 6, (3, 8, 8))
    expected, _ = Arrays(file, split="train", normalize=NORMALIZE).batch(
        np.arange(6), np.arange(6).astype(np.uint64)
    )
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays["train_x"])
    torch.testing.assert_close(prepared(images, augmented=False), expected)


def test_augmentation_by_hand_crops_and_flips_each_image_for_itself() -> None:
    torch.manual_seed(0)
    images = torch.arange(1, 1 + 50 * 3 * 8 * 8).reshape(50, 3, 8, 8)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    places = range(2 * PADDING + 1)
    taken = set()
    for number, found in enumerate(cropped(images)):
        at = [
            (top, left)
            for top in places
            for left in places
            if torch.equal(padded[number, :, top : top + 8, left : left + 8], found)
        ]
        assert len(at) == 1
        taken.add(at[0])
    assert len(taken) > 10
    turned = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped(images), strict=True)]
    assert 10 < sum(turned) < 40


def test_batches_are_read_ahead_whole_and_each_row_once_an_epoch(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, train_x=np.zeros((10, 3, 2, 2), dtype=np.uint8), train_y=np.arange(10))
    work = Work(TINY, file, 4, False, torch.device("cpu"))
    with reading(work) as batches:
        epoch = [row for _ in range(2) for row in next(batches)[1].tolist()]
        assert len(set(epoch)) == 8
        ahead = by_hand.Ahead(batches, work.device)
        assert len(next(ahead)[1]) == 4


def test_compiled_modes_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options["mode"]))
    for mode in on_device.MODES:
        Work(TINY, tmp_path, 4, False, torch.device("cpu"), mode).model()
    assert asked == [None, "reduce-overhead"]
