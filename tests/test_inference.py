"""evaluate and predict: a checkpoint of a run on a split, by any number of ranks, changing nothing of the run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_trainer.checkpoint.choose import choose, open_store
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.errors import UsageError
from dist_trainer.inference import _merged, main, make_loader, write_predictions
from dist_trainer.inference_request import RESULT, Request
from dist_trainer.launchers import infer
from dist_trainer.run_folder import RunFolder
from dist_trainer.training.task import Supervised, move_held
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(120)
CONFIG = """
name: digits
model: {target: dist_trainer.models.MLP, sizes: [64, 16, 10]}
data:
  train: {target: dist_trainer.data.Digits, split: train}
  val: {target: dist_trainer.data.Digits, split: test}
  test: {target: dist_trainer.data.Digits, split: test}
  global_batch_size: 50
loss: {target: torch.nn.CrossEntropyLoss}
metrics: {accuracy: {target: dist_trainer.training.metrics.Accuracy}}
optimizer: {target: torch.optim.SGD, lr: 0.1}
train: {steps: 40, eval_every_steps: 10, eval_every_epochs: null, ema_decay: 0.5}
checkpoint: {keep_best: {metric: val/accuracy, mode: max}, every_steps: 1000}
tracking: {uri: null}
launch: {device: cpu}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("inference")
    (folder / "digits.yaml").write_text(CONFIG)
    config = load_config([folder / "digits.yaml"]).config
    run = RunFolder.create(folder / "digits", dump_config(config), working_folder=folder)
    run_ranks(2, fit, str(run.path))
    return run


def fit(run_folder: str) -> None:
    from dist_trainer import worker

    worker.main(run_folder)


def ask(run: RunFolder, folder: Path, ranks: int, **request: Any) -> dict[str, Any]:
    folder.mkdir()
    asked = {"split": "test", "checkpoint": "last", **request}
    Request(str(run.path), **asked).write(folder)
    run_ranks(ranks, main, str(folder))
    result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    return result


def test_evaluate_gives_what_the_run_itself_measured_at_any_number_of_ranks(
    run: RunFolder, tmp_path: Path
) -> None:
    measured = run.status.results
    for ranks in (1, 3):
        found = ask(run, tmp_path / str(ranks), ranks)
        assert found["step"] == 40
        assert found["results"]["test/accuracy"] == measured["test/accuracy"]
        assert found["results"]["test/loss"] == pytest.approx(measured["test/loss"], rel=1e-6)
    assert run.highest_fence() == 1, "looking at a run is no attempt"


def test_predictions_are_in_the_order_of_the_data_set_at_any_number_of_ranks(
    run: RunFolder, tmp_path: Path
) -> None:
    outputs = []
    for ranks in (1, 3):
        output = tmp_path / f"{ranks}.npz"
        assert ask(run, tmp_path / str(ranks), ranks, output=str(output))["results"] == {"rows": 360.0}
        outputs.append(dict(np.load(output)))
    one, three = outputs
    assert np.array_equal(one["row"], np.arange(360)) and np.array_equal(three["row"], one["row"])
    np.testing.assert_allclose(three["prediction"], one["prediction"], atol=1e-5)
    from dist_trainer.data import Digits

    targets = torch.stack([target for _, target in (Digits(split="test")[i] for i in range(360))])
    right = (torch.tensor(one["prediction"]).argmax(1) == targets).double().mean()
    assert float(right) == run.status.results["test/accuracy"]


def test_csv_has_one_line_a_row_and_one_column_a_number(tmp_path: Path) -> None:
    arrays = {"row": np.arange(2), "a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([5, 6])}
    write_predictions(tmp_path / "deep" / "p.csv", arrays)
    assert (tmp_path / "deep" / "p.csv").read_text().splitlines() == [
        "row,a_0,a_1,b",
        "0,1.0,2.0,5",
        "1,3.0,4.0,6",
    ]


def test_the_best_checkpoint_is_kept_and_found(run: RunFolder) -> None:
    config = load_config([run.config_path]).config.checkpoint
    there = open_store(run, config).list()
    best = choose(there, "best", config)
    values = [
        line["values"]["val/accuracy"] for line in journal(run) if "val/accuracy" in line.get("values", {})
    ]
    assert best.metrics["val/accuracy"] == max(values)
    assert choose(there, "last", config).step == 40
    assert choose(there, str(best.step), config) == choose(there, best.name, config) == best


def test_a_checkpoint_that_is_not_there_is_said_with_those_that_are(run: RunFolder) -> None:
    config = load_config([run.config_path]).config.checkpoint
    there = open_store(run, config).list()
    with pytest.raises(UsageError, match="--checkpoint 7: no such checkpoint; there are steps 40"):
        choose(there, "7", config)
    with pytest.raises(UsageError, match=r"checkpoint\.keep_best"):
        choose(there, "best", config.model_copy(update={"keep_best": None}))


def test_the_commands_print_one_object_and_leave_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in run.path.iterdir())
    assert infer.evaluate(run, split="test", checkpoint="last", workers=2, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["results"].keys() == {"test/loss", "test/accuracy"}
    assert infer.evaluate(run, split="nothing", checkpoint="last", workers=1, as_json=False) == 2
    assert "--split nothing: the run has no data.nothing; it has train, val, test" in capsys.readouterr().err
    assert sorted(path.name for path in run.path.iterdir()) == before


def choose_on_rank_zero_only(scratch: str) -> None:
    from dist_trainer import inference

    def too_late(*arguments: Any) -> Any:
        raise AssertionError("by now there may be a newer checkpoint than rank 0 saw")

    if os.environ["RANK"] != "0":
        inference.choose = too_late  # type: ignore[assignment]
    main(scratch)


def test_one_rank_chooses_the_checkpoint_for_all(run: RunFolder, tmp_path: Path) -> None:
    Request(str(run.path), "test", "last").write(tmp_path)
    run_ranks(2, choose_on_rank_zero_only, str(tmp_path))
    assert json.loads((tmp_path / RESULT).read_text())["step"] == 40


def test_a_checkpoint_that_is_not_there_is_said_once(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer.evaluate(run, split="test", checkpoint="7", workers=2, as_json=False) == 2
    message = "--checkpoint 7: no such checkpoint; there are steps 40"
    assert capsys.readouterr().err.startswith(message)
    assert infer.evaluate(run, split="test", checkpoint="7", workers=1, as_json=True) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["state"], found["exit_code"]) == ("digits", "failed", 2)
    assert found["error"].startswith(message)


def rows_of_a_batch(config_path: str) -> int:
    from dist_trainer.adapters.distributed import join
    from dist_trainer.data import Digits

    config = load_config([config_path], ["train.accumulate_steps=5"]).config
    group = join("cpu", timeout_s=30)
    loader = make_loader(config, Digits(split="test"), "test", group)
    rows = len(next(iter(loader))[0])
    loader.close()
    group.leave()
    return rows


def test_a_batch_is_no_larger_than_in_training(run: RunFolder) -> None:
    assert run_ranks(2, rows_of_a_batch, str(run.config_path)) == [5, 5]


def test_what_the_task_holds_is_moved_to_the_device() -> None:
    task = Supervised(torch.nn.CrossEntropyLoss(weight=torch.ones(3)))
    move_held(task, torch.device("meta"))
    assert task.loss_function.weight.is_meta


@pytest.mark.parametrize(
    ("truths", "shown"),
    [
        ([np.array([0, 2]), np.array([1])], [0, 1, 2]),
        ([np.array([0, 2]), None], None),
        ([np.zeros((2, 3)), np.zeros((1, 4))], None),
    ],
)
def test_targets_are_kept_where_all_ranks_have_them_alike(truths: list[Any], shown: list[int] | None) -> None:
    rows = [np.array([0, 2]), np.array([1]), np.empty(0, np.int64)]
    alone = [{} if truth is None else {"truth": truth} for truth in truths]
    parts = [{"row": row, **given} for row, given in zip(rows, [*alone, {}], strict=True)]
    merged = _merged(parts, targets=True)
    assert merged["row"].tolist() == [0, 1, 2]
    assert (merged["truth"].tolist() if "truth" in merged else None) == shown


class NamesTruth(Supervised):
    """A name that only a file to be shown needs."""

    def prediction(self, output: Any) -> dict[str, Any]:
        return {"truth": output}


class NamesARow(Supervised):
    """Predictions under a name that the file needs itself."""

    def prediction(self, output: Any) -> dict[str, Any]:
        return {"row": output, "other": output}


@pytest.mark.parametrize("name", ["NamesARow", "NamesTruth"])
def test_a_prediction_under_a_name_that_the_file_needs_is_refused(
    name: str, run: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = run.config_path.read_text()
    own = load_config([run.config_path], [f"task.target=tests.test_inference.{name}"]).config
    run.config_path.write_text(dump_config(own))
    ask_for = infer.predict if name == "NamesARow" else infer.predict_to_show
    try:
        code = ask_for(
            run, output=tmp_path / "p.npz", split="test", checkpoint="last", workers=1, as_json=False
        )
    finally:
        run.config_path.write_text(text)
    assert code == 2
    taken = "row" if name == "NamesARow" else "truth"
    assert f"{name}: its prediction has the name {taken}, which" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def journal(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.journal_path(0).read_text().splitlines()]


def test_two_at_once_write_into_files_of_their_own(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "predictions-test.npz"
    written: list[str | None] = []

    def infer_with_another(run: RunFolder, request: Request, *rest: Any) -> Any:
        written.append(request.output)
        if len(written) == 1:
            predict_again()
        Path(str(request.output)).write_text(str(len(written)))
        return {"results": {}}

    def predict_again() -> None:
        given: dict[str, Any] = {"split": "test", "checkpoint": "last", "workers": 1, "as_json": False}
        assert infer.predict_to_show(run, output, **given) == 0

    monkeypatch.setattr(infer, "_infer", infer_with_another)
    predict_again()
    assert len(set(written)) == 2 and all(str(name).endswith(".npz") for name in written)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_predictions_to_show_have_the_truth_and_the_worst_samples(run: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "shown.npz"
    ask(run, tmp_path / "scratch", 2, output=str(output), samples=6)
    found = dict(np.load(output))
    assert len(found["truth"]) == len(found["class"]) == 360
    right = float((found["truth"] == found["class"]).mean())
    assert right == run.status.results["test/accuracy"]
    assert found["sample_input"].shape == (6, 64)
    first = int(found["sample_row"][0])
    assert found["truth"][first] != found["class"][first]
    about = json.loads(str(found["about"]))
    assert (about["step"], about["split"], about["classes"]) == (40, "test", None)
