"""Judges the workers of one node: who is asked to stop or ended, what a failure means. Knows no torch."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from dist_trainer.config.schema import LaunchConfig
from dist_trainer.errors import FINISHED, STOPPED, FencedOut, LeftEarly, NoProgress, StorageError
from dist_trainer.launchers.failures import Failure, failure_of, first_failure
from dist_trainer.launchers.hangs import HangWatch
from dist_trainer.launchers.processes import Worker, send
from dist_trainer.launchers.signals import StopRequests
from dist_trainer.run_folder import RunFolder, State, Status
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat
from dist_trainer.tracking.journal import last_saved_step

_PEERS_MAY_TAKE_S = 3.0  # after a failure; their group is broken, so there is nothing they could finish
_DEATHS_TOGETHER_S = (
    0.05  # a rank and those it pulls down die within this; the word of the first may come second
)


@dataclass(frozen=True)
class Outcome:
    """How a launch ended; `failure` is the first cause, to be shown once."""

    state: State
    exit_code: int
    step: int | None  # stopped: the one that is saved, None where nothing is
    failure: Failure | None = None
    message: str = ""
    run_again: bool = False  # another start may go better: the machine was wanted back, or it failed
    began: bool = True  # workers were started


@dataclass(frozen=True)
class NodeEnd:
    """What one node's agent tells the others after a failure: its ranks, and the exit codes of failed ones."""

    node: str
    ranks: list[int]
    codes: dict[int, int]


Share = Callable[[NodeEnd], list[NodeEnd]]


class Supervisor:
    """Watches the workers of one node over all attempts of one command."""

    def __init__(
        self,
        run: RunFolder,
        config: LaunchConfig,
        *,
        report: Callable[[str], None],
        leads: bool = True,
        node: str = "",
        leave_after_s: float | None = None,
    ) -> None:
        self.requests = StopRequests()
        self.attempt = 0
        self.share: Share = lambda own: [own]  # what the agents of all nodes tell each other after a failure
        self._run = run
        self._config = config
        self._report = report
        self._workers: list[Worker] = []
        self._leads = leads  # whether this node's agent writes for the others
        self._node = node
        self._leave_after_s = leave_after_s  # once an end was asked for
        self._failure: Failure | None = None
        self._gave_up_on_workers = False
        self._hangs = HangWatch(run, config.timeout_s)
        self._last_life: tuple[Beat | None, ...] = ()
        self._alive_at = 0.0
        self._status_before = run.read_status()
        self._fence_before = run.highest_fence()
        self._failure_before = failure_of(
            run, self._fence_before
        )  # of a launch before this one, if it failed

    @property
    def is_superseded(self) -> bool:
        """Whether somebody else began a newer attempt: what this one does counts no more."""
        return self._run.highest_fence() > max(self.attempt, self._fence_before)

    def take_fence(self) -> int:
        """The number of the attempt that starts now; older attempts may no longer commit. May raise FencedOut."""
        self._status_before = self._run.read_status()
        if self.is_superseded:
            raise FencedOut(
                f"run {self._run.path.name} went on elsewhere, in attempt {self._run.highest_fence()}"
            )
        return self._run.new_fence({"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()})

    def started(self, workers: list[Worker]) -> None:
        """These are the workers of `attempt`."""
        self._workers = workers
        self._hangs.begin()
        self._failure_before, self._failure = self._failure or self._failure_before, None

    def watch(self) -> Literal["running", "succeeded", "failed"]:
        """Look at the workers and pass on requests to stop. None is left here when the attempt has failed."""
        for number in self.requests.wanted:
            for worker in self._workers:
                worker.ask(number)
        codes = self._exit_codes()
        if all(code == 0 for code in codes.values()):
            return "succeeded"
        if any(codes.values()):
            time.sleep(_DEATHS_TOGETHER_S)
            codes = self._exit_codes()
        failed = {rank: code for rank, code in codes.items() if code}
        if failed and STOPPED in failed.values():  # asked twice itself, it left without saving
            self._gave_up_on_workers = True
            self._end_workers(at_once=True)
        elif failed:
            self._end_workers(at_once=False)
            self._failure = self._first_failure(failed)
        elif self._must_leave():
            self._gave_up_on_workers = True
            self._end_workers(at_once=True)
        elif hang := None if self.requests.stopping else self._hangs.look(self._workers, self.attempt):
            self._hangs.leave_word(hang, self._workers, self.attempt)
            self._end_workers(at_once=True)
            self._failure = self._first_failure({})
        else:
            return "running"
        self._close_attempt()
        return "failed"

    def _first_failure(self, codes: dict[int, int]) -> Failure:
        """The same on every node, since each tells the others how its ranks ended."""
        ranks = [worker.rank for worker in self._workers]
        told = self.share(NodeEnd(self._node, ranks, codes))
        everywhere = {rank: code for end in told for rank, code in end.codes.items()}
        failure = first_failure(self._run, self.attempt, everywhere)
        node = next((end.node for end in told if failure.rank in end.ranks), None)
        return replace(failure, node=node or None, exit_codes=everywhere)

    def may_restart(self, left: int) -> bool:
        """Whether another attempt makes sense; says so to the user where it does."""
        failure = self._failure
        if self.requests.stopping or failure is None or not failure.may_be_repeated or left < 1:
            return False
        if failure.repeats(self._failure_before):
            self._report("The same error at the same step again: another restart would not help.")
            return False
        of = self._config.max_restarts
        attempt = f"{of - left + 1} of {of}"
        self._report(f"{failure.what}\nRestarting from the last checkpoint, if there is one ({attempt}).")
        return True

    def lost_nodes(self, error: Exception) -> None:
        """The agents of the other nodes cannot be met any more."""
        self.clean_up()
        log = self._run.log_path(self.attempt, 0)
        self._failure = self._failure or Failure(0, f"the other nodes are gone: {error}", log)
        self._close_attempt()

    def fenced_out(self, error: FencedOut) -> None:
        """Somebody else goes on with the run."""
        log = self._run.log_path(self.attempt, 0)
        self._failure = Failure(0, str(error), log, type=FencedOut.__name__, message=str(error))

    def stop_without_workers(self) -> None:
        """A request came between two attempts."""
        self._gave_up_on_workers = True

    def clean_up(self) -> None:
        """Leave no worker behind, whatever went wrong here."""
        self._end_workers(at_once=False)

    def outcome(self) -> Outcome:
        """How it all ended; written to status.json where the workers could not."""
        if self._left_early():
            what = "the workers left without finishing: something in them ended the process with exit code 0"
            log = self._run.log_path(self.attempt, 0)
            self._failure = Failure(0, what, log, self._last_step(), LeftEarly.__name__, what)
        self._close_attempt()
        if self._failure is None and not self._gave_up_on_workers:
            return self._success(self._run.read_status())
        outcome = replace(self._judge(self._failure), began=self.attempt > 0)
        if self._leads and not self.is_superseded:
            again = outcome.state == "stopped" and self.requests.wants_requeue
            with self._writing():
                self._run.write_status(Status(outcome.state, outcome.message, outcome.step, run_again=again))
        return outcome

    def _left_early(self) -> bool:
        """Whether every exit code is 0 and yet nobody wrote that the training ended.

        Work that is no training writes nothing at all. What an earlier attempt left says nothing of this one.
        """
        if not self._leads or self.attempt == 0 or self._failure is not None:
            return False
        if self._gave_up_on_workers or self.requests.stopping:
            return False
        status = self._run.read_status()
        return status.state == "running" or (status.state != "new" and status == self._status_before)

    def _success(self, status: Status) -> Outcome:
        again = status.run_again or self.requests.wants_requeue
        if status.state == "stopped":
            return Outcome("stopped", STOPPED, status.step, run_again=again)
        if status.state != "finished" and self.requests.stopping:
            return Outcome("stopped", STOPPED, self._saved_step(), run_again=again)
        return Outcome("finished", FINISHED, status.step)

    def _judge(self, failure: Failure | None) -> Outcome:
        wanted_back, saved = self.requests.wants_requeue, self._saved_step
        if failure is None:
            message = "left at once, without saving"
            return Outcome("stopped", STOPPED, saved(), message=message, run_again=wanted_back)
        if self.requests.stopping and failure.may_be_repeated:
            message = f"{failure.what}; stopped without saving"
            return Outcome("stopped", STOPPED, saved(), failure, message, run_again=True)
        state: State = "do-not-requeue" if failure.exit_code == NoProgress.exit_code else "failed"
        again = failure.may_be_repeated and not failure.repeats(self._failure_before)
        return Outcome(state, failure.exit_code, self._last_step(), failure, failure.what, again)

    def _exit_codes(self) -> dict[int, int | None]:
        return {worker.rank: worker.process.exitcode for worker in self._workers}

    def _must_leave(self) -> bool:
        """After a request: the time is up, or no rank showed a sign of life for launch.timeout_s."""
        if not self.requests.stopping:
            return False
        if self._leave_after_s is not None and self.requests.ending_since(self._leave_after_s):
            return True
        life = tuple(read_heartbeat(self._run.heartbeat_path(worker.rank)) for worker in self._workers)
        now = time.monotonic()
        if life != self._last_life:
            self._last_life, self._alive_at = life, now
        return self.requests.urgent or now - self._alive_at > self._config.timeout_s

    def _end_workers(self, *, at_once: bool) -> None:
        alive = [worker.process for worker in self._workers if worker.process.is_alive()]
        for process in alive:
            send(process.pid, signal.SIGKILL if at_once else signal.SIGTERM)
        deadline = time.monotonic() + _PEERS_MAY_TAKE_S
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in alive:
            if process.is_alive():
                send(process.pid, signal.SIGKILL)
                process.join(_PEERS_MAY_TAKE_S)

    def _close_attempt(self) -> None:
        """The attempt's end line, unless rank 0 lived to write it."""
        ended = {line["attempt"] for line in self._run.attempts() if line["event"] == "end"}
        if not self._leads or self.attempt == 0 or self.attempt in ended:
            return
        done = self._failure is None and not self._gave_up_on_workers
        outcome = self._success(self._run.read_status()) if done else self._judge(self._failure)
        killed = self._failure is not None and self._failure.killed
        with self._writing():
            self._run.record(
                {
                    "event": "end",
                    "attempt": self.attempt,
                    "time": time.time(),
                    "last_step": self._last_step(),
                    "cause": "killed" if killed else outcome.state,
                    "exit_code": outcome.exit_code,
                    "error": outcome.message or None,
                    "node": self._failure.node if self._failure else None,
                    "rank": self._failure.rank if self._failure else None,
                    "exit_codes": dict(self._failure.exit_codes) if self._failure else {},
                }
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What the disk refuses is said: the failure itself is what the user has to hear of, and the exit code."""
        try:
            yield
        except StorageError as error:
            self._report(f"warning: {error}")

    def _saved_step(self) -> int | None:
        return last_saved_step(self._run.journal_path(0))

    def _last_step(self) -> int | None:
        beat = read_heartbeat(self._run.heartbeat_path(0))
        return beat.trained_step if beat and beat.attempt == self.attempt else None
