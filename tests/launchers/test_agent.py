"""Starting, restarting and failing, with real gloo ranks."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.adapters.lazy_compiler import COMPILER, COMPILES_VARIABLE
from dist_trainer.run_folder import RunFolder, Status
from tests.launchers.processes import Command, last_object

pytestmark = pytest.mark.timeout(60)
Launch = Callable[..., Command]


def ends(run: RunFolder) -> list[dict[str, object]]:
    return [line for line in run.attempts() if line["event"] == "end"]


def test_both_streams_of_each_rank_are_in_its_log_and_nothing_reaches_the_terminal(
    launch: Launch, run: RunFolder
) -> None:
    command = launch("finish", 2)
    assert command.finish() == 0, command.stderr
    for rank in range(2):
        log = run.log_path(1, rank).read_text().splitlines()
        assert log == [f"rank {rank} says done", "and this on the other stream"]
    assert command.stdout == '{"state": "finished", "exit_code": 0, "message": ""}\n'
    assert command.stderr == ""
    assert (run.path / "threads-1-0").read_text() == str(max(1, len(os.sched_getaffinity(0)) // 2))


def test_a_killed_rank_is_restarted_several_times_in_a_row(launch: Launch, run: RunFolder) -> None:
    command = launch("killed_three_times", 2, "max_restarts=4")
    assert command.finish() == 0, command.stdout + command.stderr
    assert run.highest_fence() == 5
    assert "rank 1 was killed by SIGKILL (out of memory?)" in command.stdout
    assert "Restarting from the last checkpoint, if there is one (4 of 4)." in command.stdout
    assert [line["cause"] for line in ends(run)] == ["killed"] * 4 + ["finished"]
    times = [float(str(line["time"])) for line in ends(run)]
    assert max(after - before for before, after in itertools.pairwise(times)) < 5


def test_the_first_failure_of_three_ranks_is_named_and_not_those_it_pulled_down(
    launch: Launch, run: RunFolder
) -> None:
    command = launch("rank_two_fails", 3, "max_restarts=1")
    assert command.finish() == 1
    assert len(run.read_errors(1)) == 3, "the others should have lost their connection"
    assert command.stdout.count("the real cause") == 2  # once when restarting, once at the end
    assert "gloo" not in command.stdout + command.stderr
    assert last_object(command.stdout)["message"].startswith(
        "rank 2 failed at step 6: ValueError: the real cause (entries.py:"
    )
    assert run.read_status().state == "failed"


def test_the_same_exception_at_the_same_step_twice_ends_the_restarts(launch: Launch, run: RunFolder) -> None:
    command = launch("fails_alike", 2, "max_restarts=5")
    assert command.finish() == 1
    assert run.highest_fence() == 2
    errors = [re.sub(r":\d+,", ":N,", line["error"]) for line in ends(run)]
    message = "failed at step 3: ValueError: always the same (entries.py:N, in fails_alike)"
    assert errors == [f"rank 1 {message}", f"rank 0 {message}"]
    assert "The same error at the same step again: another restart would not help." in command.stdout


def test_a_mistake_of_the_user_is_not_tried_again(launch: Launch, run: RunFolder) -> None:
    command = launch("user_mistake", 2)
    assert command.finish() == 2
    assert run.highest_fence() == 1
    assert last_object(command.stdout)["message"] == "optimizer.lr must be > 0, got -1"


def test_sys_exit_in_the_middle_is_a_failure_whatever_its_code(launch: Launch, run: RunFolder) -> None:
    command = launch("calls_exit", 2)
    assert command.finish() == 1
    message = str(last_object(command.stdout)["message"])
    assert message.endswith("failed at step 2: sys.exit(0) was called before the work was over")
    assert run.read_status().state == "failed"
    assert "entries.py" in run.read_errors(1)[0].traceback, "it says where"


def test_workers_that_end_as_if_all_were_well_have_not_finished(launch: Launch, run: RunFolder) -> None:
    command = launch("vanishes", 2)
    assert command.finish() == 1
    assert "the workers left without finishing" in last_object(command.stdout)["message"]
    assert (run.read_status().state, run.read_status().step) == ("failed", 2)
    assert [line["cause"] for line in ends(run)] == ["failed"]


def test_what_an_earlier_attempt_left_does_not_make_a_run_finished(launch: Launch, run: RunFolder) -> None:
    run.write_status(Status("finished", step=4))
    command = launch("vanishes_early", 2)
    assert command.finish() == 1
    assert run.read_status().state == "failed"


def test_a_module_in_the_working_folder_is_found(launch: Launch, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "users_own_module.py").write_text("VALUE = 42\n")
    command = launch("user_module", 1)
    assert command.finish() == 0, run.log_path(1, 0).read_text()
    assert (run.path / "found-1-0").read_text() == "42"


@pytest.mark.parametrize("compiles", [False, True])
def test_torch_is_imported_by_agent_and_forkserver_alone_and_at_the_same_time(
    launch: Launch, run: RunFolder, tmp_path: Path, compiles: bool
) -> None:
    watcher = tmp_path / "watcher"
    watcher.mkdir()
    (watcher / "sitecustomize.py").write_text(Path(__file__).with_name("import_watch.py").read_text())
    record = tmp_path / "imports.jsonl"
    environment = {"PYTHONPATH": str(watcher), "IMPORT_RECORD": str(record)}
    if compiles:  # else no worker needs torch's compiler
        environment |= {COMPILES_VARIABLE: "1"}
    command = launch("killed_three_times", 2, "max_restarts=4", environment=environment)
    assert command.finish() == 0, command.stdout + command.stderr
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    torch = [line for line in lines if line["module"] == "torch"]
    assert len(torch) == 2, torch
    assert command.pid in {line["pid"] for line in torch}
    first, second = sorted(torch, key=lambda line: line["begin"])
    assert second["begin"] < first["end"], "one waited for the other"
    compiler = [line["pid"] for line in lines if line["module"] == COMPILER]
    assert compiler == [line["pid"] for line in torch if line["pid"] != command.pid and compiles]
    assert "mlflow" not in {line["module"] for line in lines}
