"""A rank that hangs, wherever: noticed, named with who waits for whom, every stack written, and gone on from."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.ledger import record, times
from tests.launchers.processes import Command
from tests.test_end_to_end import Training, training, untouched  # noqa: F401

pytestmark = pytest.mark.timeout(180)
SHORT = ("launch.timeout_s=8",)


def stacks(one: Training, attempt: int, rank: int) -> str:
    """What the rank's log has after the watchdog's word."""
    log = (one.run / "logs" / f"attempt-{attempt:04d}" / f"rank-{rank}.log").read_text()
    assert "what this rank was doing" in log, log
    first, *others = re.split(r"\nno progress for \d+ s; what .* was doing:\n", log)[1:]
    for each in (first, *others):  # one process after the other
        assert each.count("Current thread 0x") == 1, each
        assert "Thread 0xThread" not in each, each
    return "\n".join((first, *others))


def said(command: Command) -> str:
    (line,) = {line for line in command.stdout.splitlines() if line.startswith("no progress: ")}
    return line


def test_a_stopped_rank_is_named_and_the_run_ends_as_if_nothing_had_been(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
    untouched: str,  # noqa: F811
) -> None:
    one = training(tmp_path, *SHORT)
    command = one.start()
    pid = one.wait_for_step(30, rank=1)
    os.kill(pid, signal.SIGSTOP)
    assert command.finish(timeout_s=120) == 0, command.stderr
    stopped = r"no progress: rank 1 .* step (\d+) for (\d+) s \(stopped by a signal\); rank.*, waiting"
    found = re.fullmatch(stopped, said(command))
    assert found, said(command)
    assert int(found[1]) >= 30 and int(found[2]) > 4
    assert "Restarting from the last checkpoint" in command.stdout
    for rank in (0, 2):
        assert "dist_trainer/training/trainer.py" in stacks(one, 1, rank)
    assert one.digest() == untouched
    record("a rank stopped by a signal", tried=1, lost=0)


HANGS = {
    "in a loader process": (
        "data.train={target: tests.faults.hanging.HangingRow, rank: 2}",
        "data.num_workers=2",
        r"rank 2 in data loading for step \d+ for \d+ s; ranks? 0 .*in the (all-reduce|broadcast) .*, waiting",
        ("hanging.py", 2),
    ),
    "evaluating": (
        "model={target: tests.faults.hanging.HangingNet, when: eval, at: 3}",
        "data.num_workers=0",
        r"rank 1 in the evaluation after step 24 for \d+ s; ranks 0 and 2 exchanging numbers with the others after "
        r"step 24, waiting",
        ("hanging.py", 1),
    ),
    "reading a row": (
        "data.train={target: tests.faults.hanging.HangingRow, rank: 2}",
        "data.num_workers=0",
        r"rank 2 in data loading for step \d+ for \d+ s; ranks? 0 .*in the (all-reduce|broadcast) .*, waiting",
        ("hanging.py", 2),
    ),
    "computing": (
        "model={target: tests.faults.hanging.HangingNet}",
        "data.num_workers=0",
        r"rank 1 computing step \d+ for \d+ s; ranks 0 and 2 in the all-reduce of step \d+, waiting",
        ("hanging.py", 1),
    ),
    "opening the data": (
        "data.train={target: tests.faults.hanging.HangingStart, rank: 1}",
        "data.num_workers=0",
        r"rank 1 starting up for \d+ s; ranks 0 and 2 joining the others, waiting",
        ("hanging.py", 1),
    ),
}


@pytest.mark.parametrize("where", list(HANGS)[: times(2, len(HANGS))])
def test_a_rank_that_hangs_is_named_with_who_waits_and_its_stack_is_there(
    where: str,
    training: type[Training],  # noqa: F811
    tmp_path: Path,
    untouched: str,  # noqa: F811
) -> None:
    *settings, message, (frame, rank) = HANGS[where]
    one = training(tmp_path, *SHORT, *map(str, settings))
    command = one.start()
    assert command.finish(timeout_s=120) == 0, command.stdout + command.stderr
    assert re.fullmatch(f"no progress: {message}", said(command)), said(command)
    assert frame in stacks(one, 1, rank)
    assert one.digest() == untouched
    record(f"a rank hangs {where}", tried=1, lost=0)


def test_the_same_hang_at_the_same_step_ends_the_run_with_its_name(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    one = training(tmp_path, *SHORT, "model={target: tests.faults.hanging.HangingNet, at: 5, always: true}")
    command = one.start()
    assert command.finish(timeout_s=120) == 1
    assert "The same error at the same step again" in command.stdout
    assert re.search(r"no progress: rank 1 computing step 2 for \d+ s", command.stderr), command.stderr
    assert one.status()["state"] == "failed"


def test_a_long_first_step_evaluation_save_or_hook_is_no_hang(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    slow = "model={target: tests.faults.hanging.HangingNet, at: 1000000, slow_first_s: 5}"
    hooks = "hooks=[{target: tests.faults.hanging.SlowAt, step: 40, seconds: 5}]"
    one = training(tmp_path, "launch.timeout_s=4", slow, hooks, "train.epochs=6")
    command = one.start()
    assert command.finish(timeout_s=120) == 0, command.stdout + command.stderr
    assert "no progress" not in command.stdout
    assert sum('"start"' in line for line in one.attempts()) == 1


TORCHRUN = """
import torch
from dist_trainer import Trainer
from tests.faults.hanging import HangingRow
from tests.training.recipes import Net

torch.manual_seed(0)
model = Net()
trainer = Trainer(
    model,
    train=HangingRow(rank=1),
    loss=torch.nn.CrossEntropyLoss(),
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
    name="script",
    epochs=3,
    global_batch_size=14,
    settings={"launch.device": "cpu", "tracking.uri": None, "launch.timeout_s": 12.0, "checkpoint.every_steps": 3},
)
print(f"rank {trainer.fit().state} {trainer.attempt.number}")
"""


def test_under_torchrun_each_rank_ends_itself_and_torchrun_goes_on(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    one = training(tmp_path)
    (tmp_path / "script.py").write_text(TORCHRUN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = Command(sys.executable, *torchrun, "script.py", folder=tmp_path)
    one.commands.append(command)
    assert command.finish(timeout_s=150) == 0, command.stderr
    assert command.stdout.count("rank finished 2") == 2
    assert re.search(
        r"no progress: rank 1 in data loading for step \d+ for \d+ s; rank 0 .*, waiting",
        command.stderr,
    )
    assert "hanging.py" in command.stderr, "the stack of the rank that hangs"
    starts = [json.loads(line) for line in (tmp_path / "runs/script/attempts.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in starts if line["event"] == "start"] == [1, 2]


def test_a_script_of_one_process_is_never_ended_but_says_where_it_is(
    training: type[Training],  # noqa: F811
    tmp_path: Path,
) -> None:
    one = training(tmp_path)
    slow = (
        TORCHRUN.replace("HangingRow(rank=1)", "SlowOnce()")
        .replace("12.0", "1.0")
        .replace(
            "torch.manual_seed(0)\n",
            "import time\nfrom tests.training.recipes import Noisy\n"
            "class SlowOnce(Noisy):\n"
            "    reads = 0\n"
            "    def __getitem__(self, index):\n"
            "        self.reads += 1\n"
            "        time.sleep(6 if self.reads == 200 else 0.02)\n"
            "        return super().__getitem__(index)\n"
            "torch.manual_seed(0)\n",
        )
    )
    (tmp_path / "script.py").write_text(slow)
    command = Command(sys.executable, "script.py", folder=tmp_path)
    one.commands.append(command)
    assert command.finish(timeout_s=90) == 0, command.stderr
    assert command.stderr.count("no progress: rank 0 in data loading") == 1
    assert "in __getitem__" in command.stderr
