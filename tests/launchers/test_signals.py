"""Who may stop what: requests by signal, and deaths of every process of a command."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command, last_object, wait_for

pytestmark = pytest.mark.timeout(60)
Launch = Callable[..., Command]


def started(launch: Launch, run: RunFolder, entry: str, *settings: str) -> Command:
    """A command whose two workers are at work."""
    command = launch(entry, 2, *settings)

    def at_work() -> bool:
        assert command.process.poll() is None, command.process.communicate()
        return all((run.path / f"pid-1-{rank}").exists() for rank in range(2))

    wait_for(at_work)
    return command


def told(run: RunFolder) -> list[str]:
    return [(run.path / f"told-1-{rank}").read_text() for rank in range(2)]


@pytest.mark.parametrize(
    ("sent", "heard"),
    [("SIGINT", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGUSR2", "SIGUSR2")],
)
def test_a_signal_to_the_command_stops_every_worker_after_saving(
    launch: Launch, run: RunFolder, sent: str, heard: str
) -> None:
    command = started(launch, run, "until_stopped")
    command.send(signal.Signals[sent])
    assert command.finish() == 75, command.stderr
    assert any(heard in words for words in told(run))  # the other ranks stop because one was told
    assert last_object(command.stdout)["state"] == "stopped"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_the_process_group_is_one_request(
    launch: Launch, run: RunFolder, sent: signal.Signals
) -> None:
    command = started(launch, run, "until_stopped")
    command.send_to_group(sent)
    assert command.finish() == 75, command.stderr
    assert run.read_status().state == "stopped"
    assert run.highest_fence() == 1


def test_a_signal_before_the_workers_listen_is_not_lost(launch: Launch, run: RunFolder) -> None:
    command = launch("until_stopped", 2)
    wait_for(lambda: (run.path / "fence" / "0001.json").exists())
    command.send_to_group(signal.SIGTERM)
    assert command.finish() == 75, command.stderr
    assert run.read_status().state == "stopped"


def test_a_second_interrupt_leaves_at_once(launch: Launch, run: RunFolder) -> None:
    command = started(launch, run, "deaf", "timeout_s=600")
    command.send_to_group(signal.SIGINT)
    time.sleep(0.3)
    command.send_to_group(signal.SIGINT)  # sooner than a second: the same request
    time.sleep(3)
    assert command.process.poll() is None
    command.send_to_group(signal.SIGINT)
    assert command.finish() == 75
    assert run.read_status().state == "stopped"
    assert run.attempts()[-1]["cause"] == "stopped"
    assert run.read_status().step is None, "nothing was saved"


def test_leaving_at_once_says_which_step_is_saved_and_not_which_was_worked_on(
    launch: Launch, run: RunFolder
) -> None:
    command = started(launch, run, "saves_and_goes_deaf", "timeout_s=1")
    command.send(signal.SIGTERM)
    assert command.finish() == 75
    assert (run.read_status().state, run.read_status().step) == ("stopped", 3)
    assert run.attempts()[-1]["last_step"] == 4


def test_workers_without_a_sign_of_life_after_a_request_are_killed(launch: Launch, run: RunFolder) -> None:
    command = started(launch, run, "deaf", "timeout_s=1")
    command.send(signal.SIGTERM)
    assert command.finish() == 75


def test_killing_the_agent_leaves_no_process(launch: Launch, run: RunFolder) -> None:
    command = started(launch, run, "deaf")
    assert len(command.others()) == 4  # forkserver, resource tracker, two workers
    command.send(signal.SIGKILL)
    wait_for(lambda: not command.others(), what="processes left")
    command.finish()


def test_killing_the_process_group_leaves_no_process(launch: Launch, run: RunFolder) -> None:
    command = started(launch, run, "until_stopped")
    command.send_to_group(signal.SIGKILL)
    wait_for(lambda: not command.others(), what="processes left")
    command.finish()


def test_killing_the_agent_while_it_starts_leaves_no_process(launch: Launch, run: RunFolder) -> None:
    command = launch("until_stopped", 2)
    wait_for(lambda: command.others())
    command.send(signal.SIGKILL)
    wait_for(lambda: not command.others(), what="processes left")
    command.finish()


def test_killing_the_forkserver_ends_its_workers_and_they_are_restarted(
    launch: Launch, run: RunFolder
) -> None:
    command = started(launch, run, "until_stopped")
    workers = [int((run.path / f"pid-1-{rank}").read_text()) for rank in range(2)]
    has_one_thread_and_ignores_signals(command.forkserver())
    os.kill(command.forkserver(), signal.SIGKILL)
    # not in /proc: what nobody has waited for yet is still there
    wait_for(lambda: not command.others().keys() & set(workers), what="the end of the workers")
    wait_for(lambda: (run.path / "pid-2-1").exists())
    command.send(signal.SIGTERM)
    assert command.finish() == 75
    assert "was lost: the process that started it was killed" in command.stdout


def has_one_thread_and_ignores_signals(forkserver: int) -> None:
    fields = Path(f"/proc/{forkserver}/status").read_text().split()
    assert int(fields[fields.index("Threads:") + 1]) == 1, "a fork of a process with threads can hang"
    ignored = int(fields[fields.index("SigIgn:") + 1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        assert ignored >> (number - 1) & 1
