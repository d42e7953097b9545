"""The commands: what they import, print and return."""

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.cli import app
from dist_trainer.config.editor_schema import json_schema
from dist_trainer.config.load import read_config
from dist_trainer.config.schema import CheckpointConfig, Config
from dist_trainer.errors import DistTrainerError, NoUsableCheckpoint
from dist_trainer.run_folder import RunFolder

CONFIG = """\
name: run
model: {target: torch.nn.Linear, in_features: 4, out_features: 2}
data: {train: {target: torchvision.datasets.FakeData}}
loss: {target: torch.nn.CrossEntropyLoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
"""
HEAVY = ("torch", "torchvision", "mlflow", "submitit", "fsspec", "numpy", "matplotlib")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def imported_by(*arguments: str) -> set[str]:
    """The modules that a fresh process has imported when the command ends."""
    code = (
        "import sys\nfrom dist_trainer.cli import app\n"
        f"try: app({list(arguments)!r})\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["config", "show", "c.yaml"], ["config", "schema"]],
    ids=" ".join,
)
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & set(HEAVY)


def test_help_does_not_even_import_the_configuration() -> None:
    assert not imported_by("--help") & {"pydantic", "yaml"}


def test_a_run_is_listed_without_torch(config: Path) -> None:
    RunFolder.create(Path("runs/run"), CONFIG, working_folder=Path.cwd())
    assert "torch" not in imported_by("checkpoint", "list", "run")


def test_show_prints_what_loads_as_the_same_configuration(config: Path, tmp_path: Path) -> None:
    result = invoke("config", "show", "c.yaml", "train.epochs=7")
    assert result.exit_code == 0
    (tmp_path / "again.yaml").write_text(result.stdout)
    assert read_config(tmp_path / "again.yaml").train.epochs == 7
    as_json = json.loads(invoke("config", "show", "c.yaml", "--json", "train.epochs=7").stdout)
    assert Config.model_validate(as_json) == read_config(tmp_path / "again.yaml")


def test_files_and_values_may_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "b=c.yaml").write_text("seed: 5")
    shown = yaml.safe_load(invoke("config", "show", "train.epochs=2", "c.yaml", "b=c.yaml").stdout)
    assert (shown["seed"], shown["train"]["epochs"]) == (5, 2)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints at the steps 10, 20 and 30, the first one the best."""
    config = f"{CONFIG}checkpoint: {{keep_best: {{metric: val/loss}}}}\n"
    run = RunFolder.create(tmp_path / "runs" / "run", config, working_folder=tmp_path)
    store = CheckpointStore(
        Storage(str(run.checkpoints)), fence=run.new_fence({}), highest_fence=run.highest_fence
    )
    for step in (10, 20, 30):
        store.commit(step, {"training.json": b"{}"}, {"metrics": {"val/loss": float(step)}})
    return run


def test_checkpoints_are_listed_newest_first(run: RunFolder) -> None:
    answer = json.loads(invoke("checkpoint", "list", "run", "--json").stdout)
    assert [(row["step"], row["metrics"]["val/loss"]) for row in answer["checkpoints"]] == [
        (30, 30),
        (20, 20),
        (10, 10),
    ]
    assert "step-000000020-f0001" in invoke("checkpoint", "list", str(run.path)).stdout


def test_verify_finds_the_checkpoint_whose_bytes_changed(run: RunFolder) -> None:
    assert invoke("checkpoint", "verify", "run").exit_code == 0
    (run.checkpoints / "step-000000020-f0001" / "training.json").write_bytes(b"[]")
    result = invoke("checkpoint", "verify", "run", "--json")
    assert result.exit_code == 1
    assert [bool(row["problem"]) for row in json.loads(result.stdout)["checkpoints"]] == [False, True, False]
    for step in (10, 30):
        (run.checkpoints / f"step-0000000{step}-f0001" / "training.json").write_bytes(b"[]")
    assert invoke("checkpoint", "verify", "run").exit_code == NoUsableCheckpoint.exit_code


def test_verify_and_list_tell_of_what_is_in_quarantine(run: RunFolder) -> None:
    whole = {step: run.checkpoints / f"step-0000000{step}-f0001" / "training.json" for step in (10, 20, 30)}
    for path in whole.values():
        path.write_bytes(b"[]")
    with pytest.raises(NoUsableCheckpoint):
        open_store(run, CheckpointConfig(), report=lambda message: None).newest_good()
    listed = invoke("checkpoint", "list", "run").stdout
    assert "no whole checkpoint" in listed and "in quarantine: step-000000030-f0001, step-0000" in listed
    assert len(json.loads(invoke("checkpoint", "list", "run", "--json").stdout)["quarantined"]) == 3
    verified = invoke("checkpoint", "verify", "run")
    assert verified.exit_code == NoUsableCheckpoint.exit_code and "in quarantine: " in verified.stdout
    whole[20].write_bytes(b"{}")  # brought back from a copy
    verified = invoke("checkpoint", "verify", "run")
    assert verified.exit_code == 1 and "step-000000020-f0001  whole again: used where" in verified.stdout


@pytest.mark.parametrize(
    ("which", "step"), [("last", 30), ("best", 10), ("20", 20), ("step-000000020-f0001", 20)]
)
def test_inspect_shows_the_checkpoint_that_is_meant(run: RunFolder, which: str, step: int) -> None:
    answer = json.loads(invoke("checkpoint", "inspect", "run", "--checkpoint", which, "--json").stdout)
    assert (answer["step"], answer["files"]) == (step, {"training.json": 2})


def test_inspect_names_the_steps_that_are_there(run: RunFolder) -> None:
    result = invoke("checkpoint", "inspect", "run", "--checkpoint", "25")
    assert (result.exit_code, result.stderr) == (
        2,
        "--checkpoint 25: no such checkpoint; there are steps 30, 20, 10\n",
    )


@pytest.mark.timeout(120)
def test_check_is_silent_where_all_is_right_and_names_each_problem_where_not() -> None:
    good = invoke("config", "check", "c.yaml")
    assert (good.exit_code, good.output) == (0, "")
    bad = invoke("config", "check", "c.yaml", "model.in_featurs=3")
    assert bad.exit_code == 2
    assert bad.stderr.startswith(
        "command line: model.in_featurs is not an argument of torch.nn.Linear; accepted: "
    )


@pytest.mark.parametrize("arguments", [["train.epochs=x"], ["loss=null", "seed=x"]])
def test_check_prints_one_json_object_with_every_problem(arguments: list[str]) -> None:
    result = invoke("config", "check", "c.yaml", "--json", *arguments)
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert len(answer["problems"]) == len(arguments)


def test_the_schema_accepts_what_the_toolkit_accepts_and_explains_itself() -> None:
    schema = json.loads(invoke("config", "schema").stdout)
    assert schema == json_schema()
    data = yaml.safe_load(CONFIG)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)
    jsonschema.validate(json.loads(invoke("config", "show", "c.yaml", "--json").stdout), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "trane": {}}, schema)
    described = schema["$defs"]["DataConfig"]["properties"]["global_batch_size"]["description"]
    assert described == "samples per step over all ranks"


@pytest.mark.parametrize(
    ("error", "code"), [(DistTrainerError("[bold]no[/bold]"), 1), (NoUsableCheckpoint("none is good"), 65)]
)
def test_an_error_is_its_message_and_its_exit_code(
    error: DistTrainerError, code: int, install: Callable[..., list[Any]]
) -> None:
    install("dist_trainer.launchers.train", "train", error)
    result = invoke("train", "c.yaml")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"{error}\n"


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["train", "nosuch.yaml"], None),
        (["config", "show", "c.yaml", "seed=x"], None),
        (["evaluate", "nosuch"], "nosuch"),
        (["checkpoint", "list", "nosuch"], "nosuch"),
        (["sync", "nosuch"], "nosuch"),
    ],
)
def test_an_error_is_one_object_for_a_script(arguments: list[str], run: str | None) -> None:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found == {"run": run, "state": "failed", "exit_code": 2, "error": result.stderr.rstrip("\n")}


def test_an_error_of_a_known_run_names_it(install: Callable[..., list[Any]]) -> None:
    install("dist_trainer.launchers.train", "train", NoUsableCheckpoint("none is good"))
    found = json.loads(invoke("train", "c.yaml", "name=mine", "--json").stdout)
    assert found == {"run": "mine", "state": "failed", "exit_code": 65, "error": "none is good"}


def test_a_value_may_be_longer_than_a_files_name() -> None:
    layers = ",".join(["1"] * 200)
    shown = invoke("config", "show", "c.yaml", f"model.sizes=[{layers}]", "--json")
    assert json.loads(shown.stdout)["model"]["sizes"] == [1] * 200
    assert "no run" in invoke("evaluate", "x" * 300).stderr


@pytest.mark.parametrize("part", ["doctor.subject", "diagnose.drill_folder"])
def test_doctor_and_drill_take_such_a_value_too(part: str) -> None:
    subject_of = importlib.import_module(f"dist_trainer.{part}").subject_of
    layers = [1] * 200
    found = subject_of(["c.yaml", f"model.sizes={json.dumps(layers)}"], Path("runs"))
    assert found.config.model.arguments["sizes"] == layers


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Put a function in the place of a launcher's: it notes how it is called, and returns or raises `answer`."""

    def install(module: str, name: str, answer: Any) -> list[Any]:
        calls: list[Any] = []

        def stand_in(*arguments: Any, **keywords: Any) -> Any:
            calls.append((arguments, keywords))
            if isinstance(answer, Exception):
                raise answer
            return answer

        fake = types.ModuleType(module)
        setattr(fake, name, stand_in)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return install


def test_train_hands_on_all_that_it_was_given(install: Callable[..., list[Any]]) -> None:
    calls = install("dist_trainer.launchers.train", "train", 75)
    given = [
        "--workers",
        "3",
        "--fresh",
        "--allow-change",
        "seed",
        "--allow-change",
        "ddp",
        "--runs",
        "elsewhere",
    ]
    assert invoke("train", "c.yaml", "optimizer.lr=0.5", *given, "--json").exit_code == 75
    ((loaded,), keywords) = calls[0]
    assert loaded.config.optimizer.arguments == {"lr": 0.5}
    assert keywords == {
        "runs": Path("elsewhere"),
        "workers": 3,
        "fresh": True,
        "allow_change": ["seed", "ddp"],
        "as_json": True,
    }


def test_evaluate_and_predict_find_the_run(install: Callable[..., list[Any]], tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "run", CONFIG, working_folder=tmp_path)
    calls = install("dist_trainer.launchers.infer", "evaluate", 0)
    assert invoke("evaluate", "run", "--checkpoint", "best", "--split", "val").exit_code == 0
    assert calls == [((run,), {"split": "val", "checkpoint": "best", "workers": None, "as_json": False})]
    calls = install("dist_trainer.launchers.infer", "predict", 0)
    assert invoke("predict", str(run.path), "--output", "p.csv").exit_code == 0
    assert calls[0][1]["output"] == Path("p.csv")
    refused = invoke("predict", "run", "--output", "p.txt")
    assert refused.exit_code == 2
    assert refused.stderr == "--output must end in .npz or .csv, got 'p.txt'\n"


@pytest.mark.parametrize(
    "command", [["evaluate"], ["sync"], ["checkpoint", "list"], ["checkpoint", "verify"]]
)
def test_a_run_that_is_not_there_is_the_users_mistake(command: list[str]) -> None:
    result = invoke(*command, "nosuch")
    assert result.exit_code == 2
    assert "no run 'nosuch'" in result.stderr


def test_usage_errors_exit_with_2() -> None:
    assert invoke("train", "c.yaml", "--no-such-option").exit_code == 2
    assert invoke("nosuch").exit_code == 2
    assert invoke("train", "c.yaml", "--workers", "0").exit_code == 2


def test_pack_writes_training_and_test_part_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "my_sets.py").write_text(
        "import numpy as np\n"
        "class Squares:\n"
        "    def __init__(self, root, train=True): self.n = 5 if train else 2\n"
        "    def __len__(self): return self.n\n"
        "    def __getitem__(self, i): return np.full((1, 2, 2), i, dtype=np.uint8), i\n"
    )
    result = invoke("data", "pack", "my_sets.Squares", "out/squares.npz", "root=x", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["arrays"]["test_x"] == [2, 1, 2, 2]
    with np.load("out/squares.npz") as arrays:
        assert arrays["train_y"].tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def torchvision() -> None:
    """Its import makes torch set an environment variable, once a process."""
    importlib.import_module("torchvision")


@pytest.mark.usefixtures("torchvision")
def test_pack_reads_a_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 3)).save(tmp_path / "pets" / part / name / "a.png")
    result = invoke("data", "pack", "pets", "pets.npz")
    assert result.exit_code == 0, result.output
    assert "train_x: 2 x 3 x 3 x 4" in result.stdout
    assert invoke("data", "pack", "nosuch", "x.npz").exit_code == 2
    assert invoke("data", "pack", "pets", "x.csv").exit_code == 2
