"""The process without the package: what it says of a file, and that it does not outlive who asked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.errors import ExportError
from dist_trainer.export import loading
from dist_trainer.export.exporting import _results
from dist_trainer.export.loading import answer
from dist_trainer.export.request import COMPARED, JOB, make_request
from tests.launchers.processes import wait_for

pytestmark = pytest.mark.timeout(60)
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-P", *sys.argv[1:]])
print(child.pid, flush=True)
child.wait()
"""


def test_a_file_that_loads_and_then_refuses_a_batch_is_told_from_one_that_does_not_load() -> None:
    calls = [{"rows": rows, "expected": [np.ones(rows)]} for rows in (1, 7)]

    def for_seven(call: dict[str, Any]) -> list[Any]:
        if call["rows"] == 1:
            raise RuntimeError("\nExpected input.shape[0] >= 2\nand a traceback")
        return [np.ones(7)]

    job = {"calls": calls, "tolerance": 1e-5}
    assert loading.check(job, lambda job: for_seven) == {
        "problem": "is loaded in a fresh process and fails there for a batch of 1: RuntimeError: "
        "Expected input.shape[0] >= 2"
    }
    assert loading.check({**job, "calls": calls[1:]}, lambda job: for_seven) == {
        "calls": [{"rows": 7, "difference": 0.0, "problem": None}]
    }


def test_bytes_that_are_not_those_that_were_written_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("planted")
    job = {"path": str(tmp_path / "model.onnx"), "sha256": "0" * 64, "format": "onnx", "calls": []}
    assert "its bytes are not those that were written" in loading.check(job, loading.load)["problem"]


def test_what_a_library_prints_at_its_end_is_no_answer(tmp_path: Path) -> None:
    request = make_request(tmp_path, "onnx", None, "last")
    answer(tmp_path / JOB, {"calls": []})
    assert _results(request, tmp_path, "{}\nGoodbye from a library\n") == []
    (tmp_path / COMPARED).unlink()
    with pytest.raises(
        ExportError, match="the model ends the process that loads it without a word:\nGoodbye"
    ):
        _results(request, tmp_path, "Goodbye\n")


def test_it_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.json")  # it waits there for a job
    command = [sys.executable, "-c", PARENT, loading.__file__, str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with (tmp_path / "job.json").open("w"):  # opens once the child reads
            parent.kill()
            parent.wait()
            wait_for(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
