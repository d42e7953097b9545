"""Weights alone: of every model that trains, whatever it takes and gives."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.errors import ExportError
from dist_trainer.export.loading import check, read_job
from dist_trainer.export.reloading import load
from dist_trainer.export.request import read_answer
from dist_trainer.export.writer import write
from tests.export.runs import job_of, make_run, text_of, weights, write_request

pytestmark = pytest.mark.timeout(60)
UNUSUAL = "task: {{target: tests.export.models.Unusual, kind: {}}}\n"


def exported(folder: Path, model: str, kind: str | None, format: str) -> tuple[dict[str, Any], Path]:
    """The card, and the job that compares."""
    run = make_run(folder / "project", text_of(model) + (UNUSUAL.format(kind) if kind else ""))
    (folder / "work").mkdir()
    write_request(run, folder / "work", format)
    write(folder / "work")
    return read_answer(folder / "work")["card"], job_of(run, folder / "work", format)


@pytest.mark.parametrize(
    ("model", "kind", "format", "inputs"),
    [
        ("Wrapped", None, "state_dict", [("inputs", ["batch", 4], "float32")]),
        ("Wrapped", "record", "state_dict", [("inputs_rows", ["batch", 4], "float32")]),
        (
            "Wrapped",
            "pair",
            "state_dict",
            [("inputs_0", ["batch", 4], "float32"), ("inputs_1", ["batch", 4], "float32")],
        ),
        ("Wrapped", "held", "state_dict", [("inputs", None, "Held")]),
        ("Summing", "list", "safetensors", [(f"rows_{row}", [4], "float32") for row in range(7)]),
    ],
)
def test_weights_of_a_model_that_takes_and_gives_what_no_program_does_are_kept(
    tmp_path: Path, model: str, kind: str | None, format: str, inputs: list[Any]
) -> None:
    card, job = exported(tmp_path, model, kind, format)
    assert [(each["name"], each["shape"], each["dtype"]) for each in card["inputs"]] == inputs
    calls = check(read_job(job), load)["calls"]
    assert [(call["rows"], call["problem"]) for call in calls] == [(1, None), (7, None)]


def test_other_weights_are_found_where_the_call_is_made_anew(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "Wrapped", "held", "state_dict")
    job = read_job(path)
    assert not any("args" in call for call in job["calls"])
    state = weights(Path(job["path"]))
    state["module.weight"][0, 0] += 1
    torch.save(state, job["path"])
    digest = hashlib.sha256(Path(job["path"]).read_bytes()).hexdigest()
    calls = check({**job, "sha256": digest}, load)["calls"]
    assert all("output 0 differs by up to" in call["problem"] for call in calls)


def test_a_program_of_such_a_model_is_refused_with_the_format_that_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"called with a Held \(inputs\); .*; --format state_dict keeps any model's weights"
    ):
        exported(tmp_path, "Wrapped", "held", "torchscript")
