"""Each format, of models that ask something else of it: the same outputs in a fresh process, or one clear error."""

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.errors import ExportError
from dist_trainer.export.writer import write
from dist_trainer.run_folder import RunFolder
from tests.export.runs import compared_in_one_process, made, make_run, text_of, write_request

pytestmark = pytest.mark.timeout(300)
ALONE = [("torch-export", None), ("onnx", None), ("torchscript", "trace"), ("torchscript", "script")]
LSTM = (
    text_of("X")
    .replace("tests.export.models.X", "dist_trainer.models.LSTMForecaster")
    .replace("[[4]]", "[[10, 1]]")
)
CONFIGS = {
    name: text_of(name)
    for name in ("TwoInputs", "Normed", "Branching", "NotScriptable", "Answering", "Wrapped")
} | {"LSTM": LSTM}
EVERY = [(model, *way) for model in ("TwoInputs", "Normed", "LSTM") for way in ALONE] + [
    ("Branching", "torchscript", "script"),
    ("NotScriptable", "torchscript", "trace"),
    ("Answering", "torch-export", None),
    ("Answering", "onnx", None),
    ("Wrapped", "onnx", None),
]
SAMPLE = [
    ("TwoInputs", "torch-export", None),
    ("Normed", "onnx", None),
    ("TwoInputs", "torchscript", "trace"),
    ("Branching", "torchscript", "script"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("formats")
    return {name: make_run(folder / name, config) for name, config in CONFIGS.items()}


def check(runs: dict[str, RunFolder], ways: list[Any], folder: Path) -> None:
    asked = [
        (runs[model], folder / f"{place}", format, method)
        for place, (model, format, method) in enumerate(ways)
    ]
    jobs = made(asked)
    for way, calls in zip(ways, compared_in_one_process(jobs), strict=True):
        assert [call["rows"] for call in calls] == [1, 7]
        assert [call["problem"] for call in calls] == [None, None], way
        assert max(call["difference"] for call in calls) <= 1e-5


@pytest.mark.timeout(400)
def test_a_sample_of_models_and_formats_gives_the_same_in_a_process_without_the_package(
    runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    check(runs, SAMPLE, tmp_path)


@pytest.mark.examples
def test_every_model_in_every_format_gives_the_same_in_a_process_without_the_package(
    runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    check(runs, [way for way in EVERY if way not in SAMPLE], tmp_path)


@pytest.mark.parametrize(
    ("model", "format", "method", "said", "instead"),
    [
        ("Branching", "torchscript", "trace", "depends on the values", "torchscript --method script"),
        ("Branching", "torch-export", None, "data-dependent", "torchscript --method script"),
        (
            "Branching",
            "onnx",
            None,
            ": GuardOnDataDependentSymNode: Could not guard",
            "torchscript --method script",
        ),
        ("NotScriptable", "torchscript", "script", "variable number of arguments", "torch-export"),
    ],
)
def test_what_torch_cannot_do_is_one_line_of_its_own_and_what_works_instead(
    runs: dict[str, RunFolder],
    tmp_path: Path,
    model: str,
    format: str,
    method: str | None,
    said: str,
    instead: str,
) -> None:
    write_request(runs[model], tmp_path, format, method)
    with pytest.raises(ExportError) as raised:
        write(tmp_path)
    message = str(raised.value)
    by = f" by --method {method}" if method else ""
    assert message.startswith(f"the model cannot be exported as {format}{by}: ")
    assert said in message and message.endswith(f"; instead, --format {instead} works")
    assert "\n" not in message


def test_a_task_that_does_not_call_the_model_is_told(tmp_path: Path) -> None:
    config = text_of("NotScriptable") + "task: {target: tests.export.models.Elsewhere}\n"
    run = make_run(tmp_path / "elsewhere", config)
    (tmp_path / "work").mkdir()
    write_request(run, tmp_path / "work", "safetensors")
    with pytest.raises(ExportError, match="its forward does not call the model itself"):
        write(tmp_path / "work")
