"""explain on folders whose files are missing, cut short or full of garbage: a screen, or one sentence, always."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.heartbeat import Heartbeat
from tests.faults.ledger import record, times

CONFIG = """
name: broken
model: {target: torch.nn.Linear, in_features: 2, out_features: 1}
data: {train: {target: builtins.list}, test: {target: builtins.list}}
loss: {target: torch.nn.MSELoss}
optimizer: {target: torch.optim.SGD, lr: 0.1}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that failed twice, with everything in its folder that there can be."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(tmp_path / "runs" / "broken", CONFIG, working_folder=tmp_path)
    for attempt in (1, 2):
        number = run.new_fence({"pid": 1, "host": "n1", "time": time.time()})
        line = {"attempt": number, "time": time.time()}
        start = {**line, "event": "start", "nodes": ["n1"], "job": "4711", "restart": 0}
        run.record({**start, "first_step": 0, "world_size": 3})
        run.write_error(number, 2, error=ValueError(f"number {attempt}"), step=418, exit_code=1)
        run.log_path(number, 2).write_text("some words\n")
        codes = {"0": 1, "2": 1}
        ended = {"last_step": 418, "cause": "failed", "exit_code": 1, "node": "n1", "rank": 2}
        run.record({**line, "event": "end", **ended, "error": "ValueError", "exit_codes": codes})
    run.write_status(Status("failed", "number 2", 418))
    (run.path / "run.lock").write_text("")
    events: list[dict[str, Any]] = [
        {"kind": "started", "total_steps": 1230, "first_step": 0, "attempt": 2, "time": 1.0},
        {"kind": "saved", "step": 400, "checkpoint": "step-000000400-f0002", "attempt": 2, "time": 1.0},
    ]
    run.journal_path(0).write_text("".join(json.dumps(event) + "\n" for event in events))
    for rank in range(3):
        beat = Heartbeat(run.heartbeat_path(rank), rank=rank, attempt=2)
        beat.beat(418, "train")
        beat.close()
    folder = run.checkpoints / "step-000000400-f0002"
    folder.mkdir()
    for name in ("MANIFEST.json", "COMMIT.json"):
        (folder / name).write_text("{}")
    slurm = run.path / "slurm"
    slurm.mkdir()
    (slurm / "jobs.jsonl").write_text(json.dumps({"job": "4711", "time": 1.0, "user": "ada"}) + "\n")
    return run


def screen(*options: str) -> str:
    """What `explain` prints; it may refuse in one sentence, and never with a traceback."""
    done = CliRunner().invoke(app, ["explain", "broken", *options], env={"COLUMNS": "80"})
    assert done.exit_code in (0, 2), f"{done.output}{done.exception!r}"
    assert done.output.strip() and "Traceback (most" not in done.output
    if done.exit_code == 2:
        assert len(done.output.strip().splitlines()) == 1, done.output
    return done.output


def test_the_whole_folder_is_one_screen(run: RunFolder) -> None:
    shown = screen().splitlines()
    assert shown[0] == "broken  failed: rank 2 failed at step 418: ValueError: number 2"
    assert len(shown) <= 24 and max(map(len, shown)) <= 80, "\n".join(shown)
    assert any(line.startswith("others    ranks 0, 1: train at step 418, pulled down") for line in shown)
    assert "unread" not in "\n".join(shown)
    assert json.loads(screen("--json"))["unreadable"] == []


def test_many_attempts_and_a_long_error_are_one_screen_too(run: RunFolder) -> None:
    long = "\n".join(f"line {number} of an error that says {'very much ' * 12}" for number in range(9))
    for attempt in range(3, 9):
        assert run.new_fence({"pid": 1, "host": "n1", "time": time.time()}) == attempt
        line = {"attempt": attempt, "time": time.time()}
        start = {**line, "event": "start", "nodes": ["n1"], "job": "4711", "restart": 0}
        run.record({**start, "first_step": 400, "world_size": 3})
        run.write_error(attempt, 2, error=ValueError(long), step=418, exit_code=1)
        ended = {"last_step": 418, "cause": "failed", "exit_code": 1, "node": "n1", "rank": 2}
        run.record({**line, "event": "end", **ended, "error": f"ValueError: {long}"})
    shown = screen().splitlines()
    assert len(shown) <= 23, "\n".join(shown)
    assert any(line.startswith("earlier   7 more in attempts.jsonl") for line in shown), shown
    run.write_error(8, 2, error=ValueError("short"), step=418, exit_code=1)
    shown = screen().splitlines()
    assert any(line.startswith("earlier   3 more in attempts.jsonl") for line in shown), shown
    assert any(line.startswith("          7: ") for line in shown), shown
    assert shown[-1].startswith("next      dist-trainer submit ")


def _garbage(content: bytes, chance: random.Random) -> list[bytes | None]:
    """None is a file that is not there."""
    middle = chance.randrange(len(content) + 1)
    values = [b"null", b"5", b"[]", b'{"state": 3, "attempt": "x", "event": []}', b'"\xff"', b"{" * 3000]
    mixed = content.replace(b"1", b'"one"').replace(b"2", b"[null]").replace(b"4", b"{}")
    return [None, b"", content[:middle], content[:-2], chance.randbytes(300), b"\0" * 400, mixed, *values]


def test_a_file_that_is_missing_cut_or_full_of_garbage_hides_no_other(run: RunFolder) -> None:
    files = sorted(path for path in run.path.rglob("*") if path.is_file())
    chance, tried = random.Random(8), 0
    for path in files:
        content = path.read_bytes()
        for _ in range(times(1, 20)):
            for broken in chance.sample(_garbage(content, chance), times(5, 13)):
                path.unlink() if broken is None else path.write_bytes(broken)
                shown = screen()
                assert shown.startswith("broken  ") or "run.json" in shown, (path, broken, shown)
                assert shown.splitlines()[-1].startswith("next "), (path, broken, shown)
                tried += 1
                path.write_bytes(content)
        path.write_bytes(content)
    record("explain: a file of the run missing, cut, or garbage", tried=tried, lost=0)
    assert "unread" not in screen()


def test_a_folder_that_is_missing_or_is_a_file_hides_no_other(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "whole")
    for name in sorted(path.name for path in run.path.iterdir() if path.is_dir()):
        for put_a_file in (False, True):
            shutil.rmtree(run.path / name)
            if put_a_file:
                (run.path / name).write_text("no folder")
            assert screen().splitlines()[-1].startswith("next "), name
            shutil.rmtree(run.path)
            shutil.copytree(tmp_path / "whole", run.path)


def test_what_is_not_there_is_said_in_one_sentence(run: RunFolder) -> None:
    def refusal(*words: str) -> str:
        done = CliRunner().invoke(app, ["explain", *words])
        assert done.exit_code == 2
        return done.output.strip()

    assert refusal("broken", "--attempt", "7") == "run broken has no attempt 7; its attempts are 1 to 2"
    assert refusal("brokn").endswith("there is broken")
    (run.path.parent / "grid").mkdir()
    (run.path.parent / "grid" / "sweep.json").write_text("{}")
    assert "dist-trainer sweep status grid shows its cells" in refusal("grid")
