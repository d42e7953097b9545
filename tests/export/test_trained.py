"""Real trained runs through the command, in every format; and a C++ program that loads what it wrote."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_trainer.export.request import FILES
from tests.export.runs import ROOT

pytestmark = [pytest.mark.examples, pytest.mark.timeout(600)]
TRAINED = {
    "sine_lstm": ["train.epochs=2", "hooks=[]"],
    "quickstart": [
        "train.epochs=1",
        "train.precision=bf16",
        "train.ema_decay=0.9",
        "train.eval_every_epochs=null",
    ],
}


def command(folder: Path, *arguments: str) -> str:
    whole = [sys.executable, "-m", "dist_trainer.cli", *arguments]
    done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the runs were trained."""
    folder = tmp_path_factory.mktemp("trained")
    for name, values in TRAINED.items():
        common = ("tracking.uri=null", "launch.device=cpu", f"name={name}")
        command(folder, "train", str(ROOT / "configs" / f"{name}.yaml"), *values, *common)
    return folder


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_run_is_exported_in_every_format(project: Path, name: str, format: str) -> None:
    found = json.loads(command(project, "export", name, "--format", format, "--json"))
    assert found["checked"]["largest_difference"] <= 1e-5
    assert (project / "runs" / name / "export" / format / FILES[format]).is_file()
    if name == "quickstart":
        assert (found["trained_with"], found["weights"]) == ("bf16", "averaged")


def test_the_program_of_the_guide_loads_it_from_cpp(project: Path, tmp_path: Path) -> None:
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("no g++ here to compile the guide's C++ program with")
    command(project, "export", "quickstart", "--format", "torchscript", "--output", str(tmp_path))
    program = re.search(r"^```cpp\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), re.M | re.S)
    assert program is not None
    (tmp_path / "main.cpp").write_text(program[1])
    home = Path(torch.__file__).parent
    headers = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
    libraries = [
        f"-L{home}/lib",
        f"-Wl,-rpath,{home}/lib",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    build = [compiler, "-std=c++20", "-O0", "main.cpp", *headers, *libraries, "-o", "main"]
    subprocess.run(build, cwd=tmp_path, check=True)
    printed = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "[ CPULongType{3} ]" in printed, "the classes of three rows"
