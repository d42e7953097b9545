"""What differs between two checkpoints of any runs, wherever they are, in a part of two tensors' memory."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint import difference
from dist_trainer.checkpoint.difference import Changed, Difference, compare
from dist_trainer.checkpoint.locate import Located, locate
from dist_trainer.checkpoint.state import encode
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.cli import app
from dist_trainer.errors import NoUsableCheckpoint, UsageError
from dist_trainer.run_folder import RunFolder

TRAINING = {"optimizer": {"lr": 0.1, "moments": [torch.ones(3), (1, 2)]}, 4: {"epoch": 2}, "limit": math.inf}


def commit(storage: Storage, step: int, model: dict[str, Any], training: Any = TRAINING) -> Located:
    store = CheckpointStore(storage, fence=1, highest_fence=lambda: 1)
    files = {name: b"".join(parts) for name, parts in encode(model, training).items()}
    return Located(store, store.commit(step, files, {}))


def differences(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> Difference:
    storage = Storage(tmp_path / "checkpoints")
    return compare(commit(storage, 1, a), commit(storage, 2, b))


def only(found: Difference) -> Changed:
    (changed,) = found.changed
    return changed


def test_two_that_are_the_same_differ_in_nothing_and_tied_tensors_count_under_each_name(
    tmp_path: Path,
) -> None:
    tied = torch.randn(4, 2)
    found = differences(tmp_path, {"a": tied, "b": tied}, {"a": tied, "b": tied.clone()})
    assert found.is_none and found.num_same == 3


def test_numbers_say_how_much_differs_in_how_many_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "_PART", 3)  # so that several parts are put together
    a = torch.arange(1.0, 11.0)
    b = a.clone()
    b[1], b[9] = 2.5, 10.1
    changed = only(differences(tmp_path, {"w": a, "same": a}, {"w": b, "same": a}))
    assert changed.name == "model.w" and changed.share == pytest.approx(0.2)
    assert changed.max_abs == pytest.approx(0.5) and changed.max_rel == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("a", "b", "max_abs", "max_rel"),
    [
        (0.0, -0.0, 0.0, 0.0),
        (math.nan, 1.0, math.inf, math.inf),
        (math.inf, 1.0, math.inf, math.inf),
        (-1.0, 1.0, 2.0, 2.0),
        (0.0, 1e-30, 1e-30, 1.0),
    ],
)
def test_elements_differ_by_their_bytes(
    tmp_path: Path, a: float, b: float, max_abs: float, max_rel: float
) -> None:
    changed = only(differences(tmp_path, {"w": torch.tensor([a, 1.0])}, {"w": torch.tensor([b, 1.0])}))
    assert changed.share == 0.5
    assert changed.max_abs == pytest.approx(max_abs) and changed.max_rel == pytest.approx(max_rel)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64]
)
def test_every_type_is_compared_and_another_one_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = torch.tensor([0, 1, 1]).to(dtype), torch.tensor([0, 0, 1]).to(dtype)
    changed = only(differences(tmp_path, {"w": a, "same": a}, {"w": b, "same": a}))
    assert (changed.share, changed.max_abs, changed.max_rel) == (pytest.approx(1 / 3), 1.0, 1.0)
    if not dtype.is_complex:
        other = only(differences(tmp_path / "other", {"w": a}, {"w": a.double()}))
        assert (other.a.dtype == other.b.dtype, other.share, other.max_abs) == (False, 0.0, 0.0)


def test_other_shapes_and_what_only_one_has_are_named(tmp_path: Path) -> None:
    found = differences(
        tmp_path, {"w": torch.ones(2, 3), "old": torch.ones(1)}, {"w": torch.ones(3, 2), "new": torch.ones(1)}
    )
    assert (found.only_in_a, found.only_in_b) == (["model.old"], ["model.new"])
    assert only(found).a.shape == (2, 3) and only(found).share is None


def test_values_of_training_are_compared_by_their_dotted_path(tmp_path: Path) -> None:
    other = {"optimizer": {"lr": 0.2, "moments": [torch.zeros(3), (1, 3)]}, 4: {"epoch": 2}, "more": None}
    storage = Storage(tmp_path / "checkpoints")
    found = compare(commit(storage, 1, {}), commit(storage, 2, {}, other))
    assert [changed.name for changed in found.changed] == ["training.optimizer.moments.0"]
    assert found.values["training.optimizer.lr"] == (0.1, 0.2)
    assert found.values["training.optimizer.moments.1.1"] == (2, 3)
    assert found.values["training.limit"][0] == "inf" and found.values["training.more"][1] is None
    assert found.values.keys() == {
        f"training.{name}" for name in ("optimizer.lr", "optimizer.moments.1.1", "limit", "more")
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, a with steps 1 and 2, b with step 1."""
    for name, steps in (("a", (1, 2)), ("b", (1,))):
        run = RunFolder.create(tmp_path / "runs" / name, f"name: {name}\n", working_folder=tmp_path)
        run.new_fence({})
        for step in steps:
            commit(Storage(run.checkpoints), step, {"w": torch.full((2,), float(step))})
    return tmp_path / "runs"


def diff(runs: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["checkpoint", "diff", *arguments, "--runs", str(runs)])


def test_the_command_says_by_its_exit_code_whether_they_differ(runs: Path) -> None:
    same = diff(runs, "a@1", "b")
    assert same.exit_code == 0 and same.stdout.endswith("the same: 2 tensors and all values\n")
    other = diff(runs, f"{runs}/a/checkpoints/step-000000002-f0001", "b@last")
    assert other.exit_code == 1 and "model.w  100%    1.00e+00  5.00e-01" in other.stdout
    found = json.loads(diff(runs, "a@2", "b@1", "--json").stdout)
    assert (found["a"]["step"], found["same"], found["tensors"]["same"]) == (2, False, 1)
    assert found["tensors"]["different"][0]["max_abs"] == 1.0


def test_what_names_no_checkpoint_is_told_with_those_that_are_there(runs: Path) -> None:
    unknown = diff(runs, "a@7", "b")
    assert unknown.exit_code == 2 and unknown.stderr == "a@7: no such checkpoint; there are steps 2, 1\n"
    assert "no run 'c'" in diff(runs, "c@1", "b").stderr
    assert "no checkpoint step-000000009-f0001; there: step-000000002" in (
        diff(runs, f"{runs}/a/checkpoints/step-000000009-f0001", "b").stderr
    )
    with pytest.raises(UsageError, match="keep_best that says what is best"):
        locate("a@best", runs)


def test_a_damaged_one_is_compared_with_nothing(runs: Path) -> None:
    path = runs / "b" / "checkpoints" / "step-000000001-f0001" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    damaged = diff(runs, "a", "b")
    assert damaged.exit_code == NoUsableCheckpoint.exit_code
    assert "was committed: a damaged checkpoint is compared with nothing" in damaged.stderr


def test_checkpoints_in_a_store_are_read_in_parts(
    bucket: str, open_storage: Callable[..., Storage], tmp_path: Path
) -> None:
    weights = torch.randn(1000)
    here = commit(Storage(tmp_path / "checkpoints"), 1, {"v": torch.ones(5), "w": weights})
    there = commit(open_storage(f"{bucket}/run"), 1, {"v": torch.ones(5), "w": weights * 2})
    changed = only(compare(here, there))
    assert changed.name == "model.w" and changed.share == 1.0 and changed.max_rel == pytest.approx(0.5)
    text = f"{bucket}/run/step-000000001-f0001"
    found = locate(text, tmp_path)
    assert found.where == text
    found.reader.storage.close()
