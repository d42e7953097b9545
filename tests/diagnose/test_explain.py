"""explain after real failures of the real command with three ranks: who failed first, what is saved, what to do."""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.submissions import Submission, add_job
from dist_trainer.tracking.heartbeat import Heartbeat, read_heartbeat
from tests.faults.ledger import is_whole, record
from tests.launchers.processes import Command, wait_for
from tests.slurm.stand_ins import INVALID, FakeSlurm, queue_line
from tests.training_command import CONFIG

pytestmark = pytest.mark.timeout(180)
SUBJECTS = "tests.diagnose.subjects"


class Subject:
    """A run in the test's folder, and what explain says of it."""

    def __init__(self, folder: Path, command: Callable[..., Command]) -> None:
        self._command = command
        self.run = RunFolder(folder / "runs" / "run")
        (folder / "run.yaml").write_text(CONFIG)

    def start(self, *overrides: str) -> Command:
        words = ["train", "run.yaml", "launch.max_restarts=0", "checkpoint.every_steps=5", *overrides]
        return self._command("-m", "dist_trainer.cli", *words)

    def fail(self, *overrides: str, code: int = 1) -> str:
        """Train until it fails; what it said."""
        command = self.start(*overrides)
        assert command.finish(timeout_s=90) == code, command.stdout + command.stderr
        assert code == 75 or command.stderr.splitlines()[-1] == "dist-trainer explain run tells more"
        return command.stderr

    def wait_for_step(self, step: int, rank: int = 0) -> int:
        """Its pid, once the newest attempt is there."""
        before = self.run.highest_fence() if self.run.path.exists() else 0

        def there() -> int:
            beat = read_heartbeat(self.run.heartbeat_path(rank))
            return beat.pid if beat and beat.step >= step and beat.attempt >= max(1, before) else 0

        return int(wait_for(there, timeout_s=60, what=f"step {step}"))

    def screen(self, *options: str) -> dict[str, str]:
        """The lines by their labels; the first is the sentence."""
        shown = CliRunner().invoke(app, ["explain", "run", *options], env={"COLUMNS": "80"})
        assert shown.exit_code == 0, shown.output
        lines = shown.output.splitlines()
        print(shown.output)
        assert sum(-(-len(line) // 80) for line in lines) <= 24, shown.output
        # a path or a command stays whole, to be copied
        assert all(len(line) <= 80 or line[:4] == "next" or "/tmp/" in line for line in lines), shown.output
        found: dict[str, str] = {"sentence": ""}
        label = "sentence"
        for line in lines:
            if line.startswith("run  ") or (label == "sentence" and line.startswith("  ")):
                found["sentence"] = f"{found['sentence']} {line.removeprefix('run  ').strip()}".strip()
                continue
            label = line[:10].strip() or label
            found[label] = f"{found.get(label, '')} {line[10:].strip()}".strip()
        assert found["next"] and "unread" not in found, shown.output
        return found

    def as_json(self) -> dict[str, Any]:
        shown = CliRunner().invoke(app, ["explain", "run", "--json"])
        found: dict[str, Any] = json.loads(shown.output)
        return found


@pytest.fixture
def subject(tmp_path: Path, command: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.chdir(tmp_path)
    return Subject(tmp_path, command)


def test_an_exception_names_its_line_and_what_the_others_did(subject: Subject) -> None:
    subject.fail(f"hooks=[{{target: {SUBJECTS}.Raises, at: 12}}]")
    said = subject.screen()
    assert said["sentence"].startswith("failed: rank 1 failed at step 12: ValueError: this picture is empty")
    assert "(subjects.py:" in said["sentence"] and "in on_step)" in said["sentence"]
    assert said["failed"].startswith("rank 1 on ") and "at step 12, in hooks" in said["failed"]
    assert 'raise ValueError("this picture is empty")' in said["error"]
    assert said["log"] == "runs/run/logs/attempt-0001/rank-1.log"
    assert {"0", "2"} <= set(re.findall(r"\d+", said["others"])) and said["others"].endswith("pulled down")
    saved = int(said["saved"].split()[1])  # saves go on beside training: that of step 10 may not have ended
    assert saved in (5, 10)
    assert said["saved"].startswith(f"step {saved} (runs/run/checkpoints/step-{saved:09d}-f0001)")
    assert said["done"] == f"step 12 of 96; {12 - saved} steps to do again"
    assert said["next"] == "dist-trainer train runs/run/config.yaml"
    record("explain: an exception on a rank", tried=1, lost=0)


def test_the_command_that_it_names_goes_on_with_the_run_and_the_same_error_is_known_again(
    subject: Subject, command: Callable[..., Command], tmp_path: Path
) -> None:
    subject.fail(f"hooks=[{{target: {SUBJECTS}.DiesAt, at: 12}}]", "--workers", "2")
    said = subject.screen()
    assert said["sentence"] == "failed: rank 1 was killed by SIGKILL (out of memory?)"
    assert "train.accumulate_steps" in said["do first"]
    program, *words = shlex.split(said["next"])
    assert program == "dist-trainer" and words == ["train", "runs/run/config.yaml", "--workers", "2"]
    again = command("-m", "dist_trainer.cli", *words)
    assert again.finish(timeout_s=60) == 1
    saved = said["saved"].split()[1]  # 5 where that of step 10 had not ended
    assert f"going on at step {saved} of 96 steps with 2 ranks" in again.stdout
    said = subject.screen()
    assert said["earlier"].startswith("1: ") and "rank 1 was killed by SIGKILL" in said["earlier"]
    assert subject.screen("--attempt", "1")["next"] == "dist-trainer explain run"
    raises = f"hooks=[{{target: {SUBJECTS}.Raises, at: 12}}]"
    subject.fail(raises, "--allow-change", "hooks", "launch.max_restarts=1")
    assert subject.screen()["again"].startswith("the same error ended attempt 3")


def test_running_stopped_and_killed_with_its_command_are_told_apart(subject: Subject) -> None:
    first = subject.start()
    subject.wait_for_step(12)
    said = subject.screen()
    assert said["sentence"].startswith("running: step ") and " s ago" in said["sentence"]
    assert said["next"] == "dist-trainer logs run -f"
    first.send(signal.SIGTERM)
    assert first.finish() == 75
    said = subject.screen()
    step = subject.run.read_status().step
    assert said["sentence"] == f"stopped; saved at step {step}; it was told to, by SIGTERM or Ctrl-C"
    assert said["next"] == "dist-trainer train runs/run/config.yaml"
    second = subject.start()
    wait_for(lambda: subject.run.highest_fence() == 2)
    subject.wait_for_step((step or 0) + 7)
    second.send(signal.SIGKILL)
    second.finish()
    wait_for(lambda: not second.others())
    said = subject.screen()
    assert said["sentence"].startswith("lost: the command that trained it on ")
    assert "died without a word" in said["sentence"]
    assert said["ranks"].startswith("rank") and " at step " in said["ranks"]
    record("explain: stopped by SIGTERM, killed with its command", tried=2, lost=0)


def test_checkpoints_that_rot_and_a_run_that_went_on_elsewhere(subject: Subject) -> None:
    first = subject.start()
    subject.wait_for_step(12)
    subject.run.new_fence({"pid": os.getpid(), "host": "elsewhere", "time": 1.0})
    assert first.finish(timeout_s=60) == 1
    fenced = subject.screen("--attempt", "1")
    assert "has taken over" in fenced["sentence"] or "went on elsewhere" in fenced["sentence"]
    for weights in subject.run.checkpoints.glob("step-*/model.safetensors"):
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    subject.fail(code=65)
    said = subject.screen()
    assert said["sentence"].startswith("failed: ") and "none is whole" in said["sentence"]
    assert said["saved"].startswith("nothing yet; ") and "in quarantine" in said["saved"]
    assert "--fresh starts anew" in said["do first"]
    assert said["next"] == "dist-trainer checkpoint verify run"
    record("explain: every checkpoint rotten, fenced out", tried=2, lost=0)


@pytest.mark.parametrize(
    ("override", "code", "says", "next_words"),
    [
        (f"data.train.target={SUBJECTS}.BadRow", 1, "this row is broken", "data.bad_rows=skip"),
        (f"data.train.target={SUBJECTS}.Infinite", 1, "not finite", "optimizer.lr="),
        (f"hooks=[{{target: {SUBJECTS}.misconfigured}}]", 2, "data.train.path must be a file", "KEY=VALUE"),
    ],
    ids=["bad-row", "not-finite", "mistake"],
)
def test_what_is_to_be_changed_is_in_the_command(
    subject: Subject, override: str, code: int, says: str, next_words: str
) -> None:
    if not is_whole() and code == 1:
        pytest.skip("one of them is enough in make test; docs/when-it-fails.md has another")
    subject.fail(override, code=code)
    said = subject.screen()
    assert says in said["sentence"], said
    assert said["next"].startswith("dist-trainer train runs/run/config.yaml") and next_words in said["next"]
    assert said["do first"]
    found = subject.as_json()
    assert found["state"] == "failed" and found["first_failed"]["exit_code"] == code
    assert says in found["first_failed"]["what"]


@pytest.mark.skipif(not is_whole(), reason="five attempts; in a soak")
def test_a_run_that_stands_still_just_behind_its_checkpoint_is_given_up_and_to_be_mended(
    subject: Subject,
) -> None:
    killed = f"hooks=[{{target: {SUBJECTS}.DiesAt, at: 22}}]"
    subject.fail(killed, "checkpoint.every_steps=20", "launch.max_restarts=9", code=93)
    said = subject.screen()
    assert said["sentence"].startswith("given up: ")
    assert said["do first"].startswith("something ends it before the next checkpoint: mend that error")
    assert said["next"] == "dist-trainer train runs/run/config.yaml"
    assert said["earlier"].count("killed by SIGKILL") >= 3


def test_a_run_elsewhere_is_named_with_its_folder(subject: Subject, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "far away" / "run", CONFIG, working_folder=tmp_path)
    shown = CliRunner().invoke(app, ["explain", "run", "--runs", str(tmp_path / "far away")])
    assert "run  new: not started yet" in shown.output
    go_on = shown.output.splitlines()[-1].split(maxsplit=1)[1]
    assert shlex.split(go_on)[-2:] == ["--runs", str(tmp_path / "far away")]


def test_explain_imports_nothing_heavy(subject: Subject, command: Callable[..., Command]) -> None:
    RunFolder.create(subject.run.path, CONFIG, working_folder=subject.run.path.parent)
    looks = (
        "import sys; from dist_trainer.cli import app\n"
        "try: app(['explain', 'run'])\n"
        "finally: print(*({'torch', 'mlflow', 'numpy', 'fsspec'} & set(sys.modules)), file=sys.stderr)"
    )
    done = command("-c", looks)
    assert done.finish() == 0 and done.stderr.strip() == "", done.stderr


def test_a_rank_that_stands_still_is_told_by_the_word_that_was_left_of_it(subject: Subject) -> None:
    run = RunFolder.create(subject.run.path, CONFIG, working_folder=subject.run.path.parent)
    number = run.new_fence({"pid": 1, "host": "n1"})
    start = {"event": "start", "attempt": number, "time": 1.0, "nodes": ["n1"], "first_step": 0}
    run.record({**start, "world_size": 8})
    for rank in range(8):
        beat = Heartbeat(run.heartbeat_path(rank), rank=rank, attempt=number)
        beat.beat(418, "data" if rank == 2 else "all-reduce")
        beat.close()
    stuck = type("RankStuck", (Exception,), {})("rank 2 waits for data, the others for its gradient")
    run.write_error(number, 2, error=stuck, step=418, exit_code=1)
    run.write_status(Status("failed", str(stuck), 418))
    said = subject.screen()
    assert "rank 2 waits for data, the others for its gradient" in said["sentence"]
    assert said["failed"] == "rank 2 on n1 at step 418, in data; attempt 1 of 1"
    assert said["others"] == "ranks 0, 1, 3-7: all-reduce at step 418, pulled down"


@pytest.fixture
def slurm(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A run whose job trained it until it died without a word."""
    run = RunFolder.create(subject.run.path, CONFIG, working_folder=tmp_path)
    add_job(run, Submission("7", script="slurm/0001.sbatch", time=time.time() - 3600))
    number = run.new_fence({"pid": 1, "host": "n1"})
    start = {"event": "start", "attempt": number, "time": 1.0, "nodes": ["n1"], "job": "7", "restart": 0}
    run.record({**start, "first_step": 0, "world_size": 2})
    run.write_status(Status("running", step=0))
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("squeue", "")
    fake.says("scontrol", INVALID)
    return fake


@pytest.mark.parametrize(
    ("state", "words", "change"),
    [
        ("OUT_OF_MEMORY", "out of memory", "slurm.options.mem=MORE"),
        ("TIMEOUT", "reached its time limit", ""),
        ("NODE_FAIL", "a node failed", ""),
        ("PREEMPTED", "preempted, not requeued", ""),
        ("CANCELLED by 1000", "cancelled", ""),
        ("FAILED", "failed, exit code 3", ""),
    ],
)
def test_slurms_own_word_is_told(
    subject: Subject, slurm: FakeSlurm, state: str, words: str, change: str
) -> None:
    code = "3:0" if state == "FAILED" else "0:0"
    times = "2031-01-02T03:04:05|2031-01-02T04:04:05|2031-01-02T03:04:05"
    slurm.says("sacct", f"7|{state}|n1|{times}|{code}||run")
    said = subject.screen()
    assert said["SLURM"] == f"job 7 on n1: {state.split()[0]}: {words}; by sacct"
    assert f"{state.split()[0]}: {words}" in said["sentence"] or "CANCELLED" in state
    assert said["next"] == f"dist-trainer submit runs/run/config.yaml {change}".strip()
    record("explain: SLURM's word for the end of a job", tried=1, lost=0)


def test_a_job_that_waits_needs_nothing(subject: Subject, slurm: FakeSlurm) -> None:
    slurm.says("squeue", queue_line("7", "PENDING", reason="Priority", name="run"))
    said = subject.screen()
    assert said["sentence"].startswith(("requeued: ", "pending: ")) and "other jobs go first" in said["SLURM"]
    assert said["next"] == "dist-trainer logs run -f"


@pytest.mark.parametrize(
    ("state", "says"),
    [("FAILED", "lost: job 7 on n1: FAILED: failed"), ("CANCELLED", "cancelled before it started")],
)
def test_a_job_that_ended_before_it_began_the_run_is_told(
    subject: Subject, slurm: FakeSlurm, state: str, says: str
) -> None:
    subject.run.attempts_path.unlink()
    (subject.run.path / "fence" / "0001.json").unlink()
    subject.run.write_status(Status("new"))
    times = "2031-01-02T03:04:05|2031-01-02T04:04:05|2031-01-02T03:04:05"
    slurm.says("sacct", f"7|{state}|n1|{times}|1:0||run")
    assert says in subject.screen()["sentence"]


def test_shell_lines_of_a_job_come_from_its_profile_again(subject: Subject, slurm: FakeSlurm) -> None:
    with subject.run.config_path.open("a") as file:
        file.write("slurm: {setup: [module load cuda]}\n")
    said = subject.screen()
    assert said["next"] == "dist-trainer submit runs/run/config.yaml PROFILE.yaml"
    assert "PROFILE.yaml is your profile with slurm.setup" in said["do first"]
