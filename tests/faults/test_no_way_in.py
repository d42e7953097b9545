"""What comes from elsewhere runs nothing and writes nowhere else: pickles, hostile names, planted links."""

import base64
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from dist_trainer.adapters.files import new_private_file
from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.manifest import FileRecord, Manifest, parse_name
from dist_trainer.checkpoint.state import MODEL, TENSORS, VALUES, decode
from dist_trainer.checkpoint.structure import unpack
from dist_trainer.checkpoint.weights import load_weights
from dist_trainer.cli import app
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.config.schema import Config
from dist_trainer.data.arrays import Arrays
from dist_trainer.data.tables import CSV
from dist_trainer.errors import CorruptCheckpoint, DistTrainerError, StorageError, UsageError
from dist_trainer.run_folder import RunFolder, Status, find_run
from dist_trainer.sweep_folder import check_name, find_sweep
from dist_trainer.tracking.final_model import final_model
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.parameters import mlflow_name
from dist_trainer.tracking.sync_state import SyncState
from tests.faults.hostile_checkpoints import THE_ONE, files, manifest_of, put, store_of
from tests.faults.hostile_runs import COMMANDS, make
from tests.faults.ledger import record

RUN_FILES = [
    *(
        "run.json",
        "status.json",
        "attempts.jsonl",
        "mlflow-sync.json",
        "times.json",
        "trained-code.json",
        "run.lock",
        "config.yaml",
    ),
    *("journal/rank-0.jsonl", "heartbeat/rank-0", "slurm/jobs.jsonl", "fence/0001.json"),
    "logs/attempt-0001/error-rank-1.json",
]


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self._canary), "w")


def test_a_pickle_is_never_run_whatever_it_stands_in_for(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    raw = pickle.dumps(Payload(canary))
    tried = [
        *_weights(tmp_path, canary, raw),
        *_checkpoints(tmp_path, raw),
        *_data(tmp_path, canary, raw),
        *_run_files(tmp_path, raw),
        *_texts(tmp_path, raw, canary),
    ]
    ran = []
    for what, read in tried:
        with suppress(DistTrainerError):
            read()
        if canary.exists():
            canary.unlink()
            ran.append(what)
    record("pickle payloads", tried=len(tried), lost=len(ran))
    assert not ran
    assert len(tried) >= 20
    pickle.loads(raw).close()  # that it would have
    assert canary.exists()


Tried = list[tuple[str, Callable[[], Any]]]


def _weights(folder: Path, canary: Path, raw: bytes) -> Tried:
    """Files of weights; a state dict with one more entry; torch's new format and its old one."""
    state = {"weight": torch.ones(2), "more": Payload(canary)}
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(Payload(canary), folder / "alone.pt")
    (folder / "raw.pt").write_bytes(raw)
    (folder / "named.safetensors").write_bytes(raw)
    shutil.copy(folder / "zip.pt", folder / "zip.safetensors")
    names = ("zip.pt", "old.pth", "alone.pt", "raw.pt", "named.safetensors", "zip.safetensors")
    return [(name, partial(load_weights, folder / name)) for name in names]


def _checkpoints(folder: Path, raw: bytes) -> Tried:
    """Each file of a checkpoint, with digests that are right: a resume, verify and MLflow's copy of it."""

    def read(name: str, place: Path) -> None:
        content = {**files(), name: raw}
        put(place, content, manifest_of(content))
        found = store_of(place).newest_good()
        final_model(str(place), carried=None, into=place)
        assert found is not None
        decode(found[1])

    def mark(place: Path, *, is_manifest: bool) -> None:
        whole = files()
        put(place, whole, raw if is_manifest else manifest_of(whole), None if is_manifest else raw)
        store_of(place).newest_good()

    return [
        *((name, partial(read, name, folder / f"of-{name}")) for name in (MODEL, TENSORS, VALUES)),
        ("MANIFEST.json", lambda: mark(folder / "manifest", is_manifest=True)),
        ("COMMIT.json", lambda: mark(folder / "marker", is_manifest=False)),
    ]


def _data(folder: Path, canary: Path, raw: bytes) -> Tried:
    """Arrays of objects, and a table."""
    objects = np.array([Payload(canary), Payload(canary)], dtype=object)
    np.savez(folder / "objects.npz", x=objects, y=np.arange(2))
    np.savez(folder / "targets.npz", x=np.ones((2, 3)), y=objects)
    with (folder / "one.npz").open("wb") as file:
        np.save(file, objects)
    (folder / "raw.npz").write_bytes(raw)
    (folder / "table.csv").write_bytes(b"a,b\n" + raw + b",1\n")
    names = ("objects.npz", "targets.npz", "one.npz", "raw.npz")
    arrays = [(name, partial(Arrays, folder / name)) for name in names]
    return [*arrays, ("table.csv", lambda: CSV(folder / "table.csv", label="b"))]


def _run_files(folder: Path, raw: bytes) -> Tried:
    """Every file of a run, read by the commands that look at it."""
    whole = make(folder / "whole").path

    def look(name: str) -> None:
        runs = folder / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(whole, runs / "mine")
        (runs / "mine" / name).write_bytes(raw)
        for command in COMMANDS:
            done = CliRunner().invoke(app, [*command, "--runs", str(runs)])
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

    return [(name, partial(look, name)) for name in RUN_FILES]


def _texts(folder: Path, raw: bytes, canary: Path) -> Tried:
    """A configuration's tags, and a packed value's."""
    packed = {"$": "pickle", "value": base64.b64encode(raw).decode()}
    config = folder / "tagged.yaml"
    config.write_text(f"name: !!python/object/apply:builtins.open ['{canary}', w]\n")
    return [("!!python/object", lambda: load_config([config])), ("a packed value", lambda: unpack(packed))]


HOSTILE_NAMES = [
    *(
        "../x",
        "..",
        ".",
        "/abs",
        "a/../../b",
        "a/b",
        "./a",
        "..%2fx",
        "%2e%2e",
        "%2e%2e%2fx",
        "..\\x",
        "a\\..\\b",
        "~",
        "~root",
    ),
    *(
        "a\0b",
        "a\nb",
        "a\rb",
        "a\tb",
        "\x1b[2Ja",
        "a\x7f",
        "\u202eexe.a",
        "a\u200bb",
        "\ufeffa",
        "\u2028a",
        "\x85a",
    ),
    *(
        "-rf",
        "--help",
        "-",
        "--runs=/",
        "+x",
        "=x",
        "@x",
        "!x",
        "#x",
        "$HOME",
        "${HOME}",
        "$(touch c)",
        "`touch c`",
        ";touch c",
    ),
    *(
        "a b",
        " a",
        "a ",
        "",
        "x" * 300,
        ".hidden",
        "...",
        "а",
        "ｒun",
        "run\u0301",
        "\U0001f600",
        "١",
        "²",
    ),
    *(
        "*",
        "?",
        "[a]",
        "{a}",
        "a|b",
        "a>b",
        "a&b",
        "a'b",
        'a"b',
        "a:b",
        "C:\\x",
        "file:///x",
        "s3://x/y",
        "a;b",
    ),
]
LATER = ["trailing.", "con", "nul.txt", "lpt1", "a..b", "run.json", "x-old-1"]  # names like any other


def test_no_hostile_name_leads_out_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "here" / "runs"
    inside.mkdir(parents=True)
    make(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    before = _names(tmp_path)
    taken = []
    for name in [*HOSTILE_NAMES, *LATER]:
        for use in (
            _as_run,
            _as_sweep,
            _to_find,
            _as_metric,
            _as_checkpoint,
            _in_manifest,
            _in_store,
            _as_experiment,
        ):
            if use(name, inside) and name in HOSTILE_NAMES:
                taken.append(f"{use.__name__} took {name!r}")
    outside = [name for name in _names(tmp_path) - before if not name.startswith("here/runs/")]
    record("hostile names and paths", tried=len(HOSTILE_NAMES) + len(LATER), lost=len(taken) + len(outside))
    assert not taken
    assert not outside
    assert len(HOSTILE_NAMES) >= 60


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _as_run(name: str, runs: Path) -> bool:
    """The name in a configuration, which is that of the run's folder."""
    text = (
        "model: {target: a.B}\ndata: {train: {target: a.B}}\nloss: {target: a.b}\noptimizer: {target: a.B}\n"
    )
    (runs / "c.yaml").write_text(text)
    with suppress(DistTrainerError, ValueError):
        config = load_config([runs / "c.yaml"], [f"name={json.dumps(name)}"]).config
        RunFolder.create(runs / config.name, dump_config(config), working_folder=runs)
        return True
    return False


def _as_sweep(name: str, runs: Path) -> bool:
    with suppress(UsageError):
        check_name(name)
        return True
    return False


def _to_find(name: str, runs: Path) -> bool:
    found = []
    for find in (find_run, find_sweep):
        with suppress(UsageError):
            found.append(find(name, runs))
    return bool(found) and name not in (".", "..")


def _as_metric(name: str, runs: Path) -> bool:
    """In a configuration; what a task of the user's names otherwise is changed to what MLflow takes."""
    clean = mlflow_name(name)
    assert ".." not in clean.split("/") and not clean.startswith("/") and clean
    with suppress(ValidationError):
        Config.model_validate(
            {
                "name": "a",
                "model": {"target": "a.B"},
                "data": {"train": {"target": "a.B"}},
                "loss": {"target": "a.b"},
                "optimizer": {"target": "a.B"},
                "metrics": {name: {"target": "a.B"}},
            }
        )
        return True
    return False


def _as_checkpoint(name: str, runs: Path) -> bool:
    steps = [f"step-000000010-f0001{name}", f"{name}step-000000010-f0001"] if name else []
    return any(parse_name(each) is not None for each in [name, *steps])


def _in_manifest(name: str, runs: Path) -> bool:
    raw = Manifest({name: FileRecord(1, "0" * 64)}, {}).to_bytes(THE_ONE)
    with suppress(CorruptCheckpoint):
        Manifest.parse(raw, THE_ONE)
        return True
    return False


def _in_store(name: str, runs: Path) -> bool:
    """A dot in front and a dash are no harm in a store; what leads out is."""
    storage = Storage(runs / "store")
    for write in (storage.write, storage.create_exclusive):
        with suppress(StorageError, FileExistsError):
            write(name, b"x")
    with suppress(StorageError):
        storage.delete_folder(f"../{name}")
        return True
    return False


def _as_experiment(name: str, runs: Path) -> bool:
    """The folder of its artifacts, beside a database."""
    place = runs / "mlartifacts" / mlflow_name(name or "default")
    return not Path(os.path.normpath(place)).is_relative_to(runs / "mlartifacts")


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "status.json",
        "attempts.jsonl",
        "run.lock",
        "config.yaml",
        "mlflow-sync.json",
        "times.json",
        "trained-code.json",
    ],
)
def test_a_run_folder_with_a_link_in_the_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    run, victim = make(tmp_path), tmp_path / "victim"
    shutil.move(run.path / name, victim)
    content = victim.read_bytes()
    (run.path / name).symlink_to(victim)
    with pytest.raises(UsageError, match=r"is a symbolic link, and nothing of a run is written through one"):
        RunFolder.open(run.path)
    assert victim.read_bytes() == content


@pytest.mark.parametrize("name", ["fence", "journal", "logs", "heartbeat", "checkpoints", "slurm"])
def test_a_run_folder_with_a_link_in_the_place_of_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    run = make(tmp_path)
    shutil.move(run.path / name, tmp_path / "elsewhere")
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["jobs", "mine", "--runs", str(tmp_path)])
    assert done.exit_code == 2
    assert f"{run.path / name} is a symbolic link" in done.stderr


def test_nothing_is_written_through_a_link_that_was_planted_meanwhile(tmp_path: Path) -> None:
    run, victim, elsewhere = make(tmp_path), tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("precious")
    elsewhere.mkdir()
    writers: dict[str, Callable[[], Any]] = {
        "attempts.jsonl": lambda: run.record({"event": "end", "attempt": 1}),
        "status.json": lambda: run.write_status(Status("failed")),
        "mlflow-sync.json": lambda: SyncState().save(run),
        "journal/rank-0.jsonl": lambda: Journal(run.journal_path(0), attempt=1, rank=0).close(),
        "heartbeat/rank-0": lambda: Heartbeat(run.heartbeat_path(0), rank=0, attempt=1).close(),
        "fence/0002.json": lambda: run.new_fence({}),
        "run.lock": lambda: run.lock().__enter__(),
        "logs/attempt-0009": lambda: run.write_error(9, 0, error=ValueError(), step=1, exit_code=1),
        "profile.json": lambda: new_private_file(run.path / "profile.json").write_text("x"),
        f"checkpoints/{THE_ONE.name}": lambda: store_of(run.checkpoints).storage.write(
            f"{THE_ONE.name}/x", b"x"
        ),
        "checkpoints/step-000000011-f0001": lambda: store_of(run.checkpoints).storage.delete_folder(
            "step-000000011-f0001"
        ),
    }
    for name, write in writers.items():
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(elsewhere if name.startswith(("logs", "checkpoints")) else victim)
        with suppress(UsageError, StorageError):
            write()
        assert victim.read_text() == "precious", name
        assert not list(elsewhere.iterdir()), name


def test_a_folder_of_runs_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = make(tmp_path / "runs")
    assert RunFolder.open(tmp_path / "runs" / "mine").info() == run.info()
    assert (
        CliRunner().invoke(app, ["checkpoint", "verify", "mine", "--runs", str(tmp_path / "runs")]).exit_code
        == 0
    )


def test_a_planted_link_is_no_place_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a symbolic link"):
        RunFolder.create(tmp_path / "mine", "", working_folder=tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())
