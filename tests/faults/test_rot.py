"""Rot: whatever changed in a checkpoint since its commit is found before any of it is used."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.adapters.storage import Storage
from dist_trainer.checkpoint.state import encode
from dist_trainer.errors import CorruptCheckpoint
from dist_trainer.inference import main as infer
from dist_trainer.inference_request import Request
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.final_model import final_model
from tests.faults.ledger import is_whole, record
from tests.faults.power import contents
from tests.faults.small_run import fit, make_run, train_command, weights
from tests.faults.victims import store_of
from tests.ranks import RankFailed, run_ranks

pytestmark = pytest.mark.timeout(600 if is_whole() else 120)
FILES = ("model.safetensors", "training.safetensors", "training.json", "MANIFEST.json", "COMMIT.json")
KINDS = (
    *("bit flips", "zeroed pages", "truncation", "appended bytes"),
    *("swapped files", "another step's file", "another run's file"),
)
SEED, PAGE, OTHERS = 4, 4096, 40
MUTATIONS = 200  # of each file, also in make test: they are cheap
Content = dict[str, bytes]


@dataclass(frozen=True)
class Mutation:
    """What a kind of rot makes of a checkpoint: the files that are changed."""

    kind: str
    changed: Content


def save(folder: Path, step: int, seed: int) -> Content:
    """A checkpoint of several pages, by a run of its own for each seed."""
    chance = torch.Generator().manual_seed(1000 * seed + step)
    model = {"weight": torch.randn(48, 64, generator=chance), "bias": torch.randn(64, generator=chance)}
    moments = {name: torch.randn(value.shape, generator=chance) for name, value in model.items()}
    history = [chance.initial_seed() * number for number in range(1000)]
    training = {"step": step, "seed": seed, "moments": moments, "history": history}
    checkpoint = store_of(Storage(folder), 1).commit(
        step, encode(model, training), {"metrics": {"loss": seed / 2}}
    )
    return {name: (folder / checkpoint.name / name).read_bytes() for name in FILES}


def mutations(file: str, own: Content, steps: list[Content], runs: list[Content]) -> Iterator[Mutation]:
    """Without end, each kind in turn; some may leave the bytes as they are."""
    chance, data = random.Random(f"{SEED} {file}"), own[file]
    others = [name for name in FILES if name != file]
    for number in range(10**6):
        flipped = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 9))):
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        page = chance.randrange(0, len(data), PAGE)
        zeroed = data[:page] + bytes(len(data[page : page + PAGE])) + data[page + PAGE :]
        cut = data[: chance.choice((0, 1, len(data) - 1, chance.randrange(len(data))))]
        more = data + chance.choice((b"\0", b"\n", b" ", data, chance.randbytes(chance.randrange(1, 5000))))
        other = others[number % len(others)]
        yield Mutation(KINDS[0], {file: bytes(flipped)})
        yield Mutation(KINDS[1], {file: zeroed})
        yield Mutation(KINDS[2], {file: cut})
        yield Mutation(KINDS[3], {file: more})
        yield Mutation(KINDS[4], {file: own[other], other: data})
        yield Mutation(KINDS[5], {file: steps[number % len(steps)][file]})
        yield Mutation(KINDS[6], {file: runs[number % len(runs)][file]})


def distinct(
    file: str, own: Content, steps: list[Content], runs: list[Content], number: int
) -> list[Mutation]:
    """So many that differ from the checkpoint and from each other."""
    found: dict[tuple[bytes, ...], Mutation] = {}
    for mutation in mutations(file, own, steps, runs):
        if mutation.changed[file] != own[file]:
            found.setdefault(tuple(mutation.changed.values()), mutation)
        if len(found) == number:
            break
    return list(found.values())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Content], list[Content]]:
    """Checkpoints of other steps of the run, and of the same step of other runs."""
    folder = tmp_path_factory.mktemp("others")
    return (
        [save(folder / "steps", 300 + number, 1) for number in range(OTHERS)],
        [save(folder / f"run-{number}", 200, 2 + number) for number in range(OTHERS)],
    )


@pytest.mark.parametrize("file", FILES)
def test_every_mutation_is_found_and_the_checkpoint_before_is_used(
    file: str, tmp_path: Path, others: tuple[list[Content], list[Content]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path, 100, 1)
    own = save(tmp_path, 200, 1)
    newest = tmp_path / "step-000000200-f0001"
    tried, lost = Counter[str](), Counter[str]()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for mutation in distinct(file, own, *others, number=MUTATIONS):
        for name, data in mutation.changed.items():
            (newest / name).write_bytes(data)
        tried[mutation.kind] += 1
        lost[mutation.kind] += not is_found(tmp_path, newest, before, mutation.changed)
        (newest / "QUARANTINE.json").unlink(missing_ok=True)
        for name in mutation.changed:
            (newest / name).write_bytes(own[name])
    assert set(tried) == set(KINDS)
    note = ", ".join(f"{tried[kind]} {kind}" for kind in KINDS)
    record(f"rot of {file}", tried=tried.total(), lost=lost.total(), note=note)
    assert not +lost


def is_found(folder: Path, newest: Path, before: Content, changed: Content) -> bool:
    """Whether the one before is given, and the bad one said, marked and kept as it is."""
    reports: list[str] = []
    store = store_of(Storage(folder), 1, reports)
    found = store.newest_good()
    kept = {name: (newest / name).read_bytes() for name in changed}
    marked = newest / "QUARANTINE.json"
    return (
        found is not None
        and found[0].step == 100
        and {name: bytes(data) for name, data in found[1].items()}
        == {name: before[name] for name in found[1]}
        and len(reports) == 1
        and newest.name in reports[0]
        and marked.exists()
        and newest.name in json.loads(marked.read_text())["reason"]
        and kept == changed
    )


@pytest.mark.parametrize("file", ["model.safetensors", "MANIFEST.json"])
def test_mlflow_never_gets_a_model_that_is_not_the_committed_one(
    file: str, tmp_path: Path, others: tuple[list[Content], list[Content]]
) -> None:
    own, tried = save(tmp_path, 200, 1), 0
    newest = tmp_path / "step-000000200-f0001"
    for mutation in distinct(file, own, *others, number=MUTATIONS):
        for name, data in mutation.changed.items():
            (newest / name).write_bytes(data)
        with pytest.raises(CorruptCheckpoint, match=newest.name):
            final_model(str(tmp_path), carried=None, into=tmp_path)
        tried += 1
        for name in mutation.changed:
            (newest / name).write_bytes(own[name])
    assert final_model(str(tmp_path), carried=None, into=tmp_path) == (
        newest.name,
        newest / "model.safetensors",
    )
    record(f"rot of {file}, before a model goes to MLflow", tried=tried, lost=0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run of 30 steps that nobody touched."""
    run = make_run(tmp_path_factory.mktemp("untouched"))
    fit(run)
    return weights(run)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run at step 20, with the checkpoint of step 20 and one or two before it."""
    folder = tmp_path_factory.mktemp("stopped")
    fit(make_run(folder, "train.steps=20"))
    return folder


def copy_of(stopped: Path, folder: Path) -> RunFolder:
    """The run again, in a folder of the test's own."""
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    run = RunFolder.open(folder / "runs" / "run")
    run.update_info(working_folder=folder)
    return run


def damage(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES if is_whole() else ["training.safetensors"])
def test_a_damaged_checkpoint_changes_no_bit_of_the_finished_weights(
    file: str, stopped: Path, reference: str, tmp_path: Path
) -> None:
    run = copy_of(stopped, tmp_path)
    *_, before, bad = sorted(path.name for path in run.checkpoints.iterdir())
    damage(run.checkpoints / bad / file, random.Random(SEED))
    command = train_command(tmp_path)
    assert command.process.returncode == 0, command.stderr
    assert f"going on at step {int(before[5:14])} of 30 steps" in command.stdout
    assert f"{bad}/" in command.stdout and "put in quarantine, using the one before it" in command.stdout
    assert weights(run) == reference
    assert (run.checkpoints / bad / "QUARANTINE.json").exists(), "it is kept, for a look at it"
    record(f"rot of {file}, by the command", tried=1, lost=0, note="the weights of an untouched run")


def test_where_all_are_damaged_the_command_ends_with_65_and_overwrites_nothing(
    stopped: Path, tmp_path: Path
) -> None:
    run, chance = copy_of(stopped, tmp_path), random.Random(SEED)
    there = list(run.checkpoints.iterdir())
    for checkpoint in there:
        damage(checkpoint / chance.choice(FILES), chance)
    before = contents(run.checkpoints)
    command = train_command(tmp_path)
    assert command.process.returncode == 65
    assert f"{len(there)} checkpoints and none is whole" in command.stderr and "--fresh" in command.stderr
    left = contents(run.checkpoints)
    assert {name: data for name, data in left.items() if "QUARANTINE" not in name} == before
    assert len(left) == len(before) + len(there)
    record(
        "rot of all checkpoints, by the command", tried=1, lost=0, note="exit code 65, nothing overwritten"
    )


@pytest.mark.parametrize("output", [None, "predictions.csv"], ids=["evaluate", "predict"])
def test_a_damaged_checkpoint_is_neither_evaluated_nor_predicted_with(
    output: str | None, stopped: Path, tmp_path: Path
) -> None:
    run, scratch = copy_of(stopped, tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    damage(run.checkpoints / "step-000000020-f0001" / "model.safetensors", random.Random(SEED))
    asked: dict[str, Any] = {"output": str(tmp_path / output) if output else None}
    Request(str(run.path), "test", "last", **asked).write(scratch)
    with pytest.raises(RankFailed, match=r"model\.safetensors: sha256.*checkpoint verify"):
        run_ranks(1, infer, str(scratch))
    assert not (tmp_path / "predictions.csv").exists()
    record(f"rot before {'predict' if output else 'evaluate'}", tried=1, lost=0)
