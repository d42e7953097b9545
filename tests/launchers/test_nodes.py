"""Several nodes: two agents on one host, by plain torchrun and by our own launch."""

import re
import signal
import socket
import time
from collections.abc import Callable

import pytest

from dist_trainer.run_folder import RunFolder, Status
from tests.launchers.processes import Command, catches, last_object, wait_for

pytestmark = [pytest.mark.timeout(90), pytest.mark.faults]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_two_plain_torchrun_agents_run_the_worker(command: Callable[..., Command], run: RunFolder) -> None:
    port = free_port()
    arguments = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    arguments += [f"--rdzv-endpoint=127.0.0.1:{port}", "-m", "tests.launchers.plain_worker", str(run.path)]
    agents = [command(*arguments) for _ in range(2)]
    for agent in agents:
        assert agent.finish(60) == 0, agent.stderr
    assert [(run.path / f"rank-{rank}-of-2").read_text() for rank in range(2)] == ["1 5", "1 5"]
    assert run.highest_fence() == 1


def test_two_agents_of_ours_meet_restart_together_and_take_one_fence_a_start(
    launch: Callable[..., Command], run: RunFolder
) -> None:
    port = free_port()
    agents = [
        launch("killed_three_times", 1, "max_restarts=4", environment={"NODE": f"{rank} 127.0.0.1:{port}"})
        for rank in range(2)
    ]
    for agent in agents:
        assert agent.finish(60) == 0, agent.stdout + agent.stderr
    assert run.highest_fence() == 5
    ends = [line for line in run.attempts() if line["event"] == "end"]
    assert [line["attempt"] for line in ends] == [1, 2, 3, 4, 5]


def test_node_0_takes_a_free_port_and_says_which(launch: Callable[..., Command], run: RunFolder) -> None:
    first = launch("finish", 1, environment={"NODE": "0 127.0.0.1:0"})
    wait_for(lambda: (run.path / "port").exists())
    port = int((run.path / "port").read_text())
    second = launch("finish", 1, environment={"NODE": f"1 127.0.0.1:{port}"})
    for agent in (first, second):
        assert agent.finish(60) == 0, agent.stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_every_node_names_the_rank_that_was_killed_though_it_left_no_word(
    launch: Callable[..., Command], run: RunFolder, victim: int
) -> None:
    port = free_port()
    agents = [
        launch("killed_when_asked", 1, "max_restarts=0", environment={"NODE": f"{rank} 127.0.0.1:{port}"})
        for rank in range(2)
    ]
    wait_for(lambda: all((run.path / f"pid-1-{rank}").exists() for rank in range(2)))
    (run.path / f"kill-{victim}").touch()
    for agent in agents:
        assert agent.finish(60) == 1
        told = last_object(agent.stdout)["message"]
        assert told == f"rank {victim} was killed by SIGKILL (out of memory?)"
    (end,) = [line for line in run.attempts() if line["event"] == "end"]
    assert (end["cause"], end["node"]) == ("killed", "127.0.0.1")


def test_a_rank_that_hangs_on_one_node_is_named_by_both_and_each_rank_leaves_its_stack(
    launch: Callable[..., Command], run: RunFolder
) -> None:
    port = free_port()
    settings = ("max_restarts=1", "timeout_s=4")
    agents = [
        launch("rank_one_hangs", 1, *settings, environment={"NODE": f"{rank} 127.0.0.1:{port}"})
        for rank in range(2)
    ]
    for agent in agents:
        assert agent.finish(60) == 0, agent.stdout + agent.stderr
        assert re.search(
            r"no progress: rank 1 .* for \d+ s; rank 0 exchanging numbers .*, waiting", agent.stdout
        )
    assert "in rank_one_hangs" in run.log_path(1, 1).read_text()
    assert "in sum_over_ranks" in run.log_path(1, 0).read_text()
    assert run.highest_fence() == 2


def test_an_agent_that_was_overtaken_starts_nothing_and_leaves_the_status_alone(
    launch: Callable[..., Command], run: RunFolder
) -> None:
    agent = launch("killed_when_asked", 2)
    wait_for(lambda: (run.path / "pid-1-1").exists())
    newer = Status("running", "by another start", 7)
    run.new_fence({})
    run.write_status(newer)
    (run.path / "kill-1").touch()
    assert agent.finish(60) == 1
    assert last_object(agent.stdout)["message"] == "run test went on elsewhere, in attempt 2"
    assert (run.highest_fence(), run.read_status()) == (2, newer)


def test_a_request_while_waiting_for_the_other_nodes_is_heard(
    launch: Callable[..., Command], run: RunFolder
) -> None:
    agent = launch("finish", 1, environment={"NODE": f"0 127.0.0.1:{free_port()}"})
    wait_for(lambda: catches(agent.pid, signal.SIGTERM))
    time.sleep(1)  # it waits for node 1 by now
    agent.send(signal.SIGTERM)
    assert agent.finish(20) == 75, agent.stderr
    assert run.highest_fence() == 0
