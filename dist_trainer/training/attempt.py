"""This rank's part in one attempt of a run: its group, its run folder, and what it writes there."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from dist_trainer.adapters.distributed import Group, PeerFailed, join
from dist_trainer.adapters.place import Place
from dist_trainer.config.schema import LaunchConfig
from dist_trainer.errors import DistTrainerError, StorageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal
from dist_trainer.training.progress import clear_line
from dist_trainer.training.stop import Signals


@dataclass(frozen=True)
class Attempt:
    """What every part of the training needs to know about where it runs. `number` is the fence's."""

    run: RunFolder
    group: Group
    journal: Journal
    heartbeat: Heartbeat
    signals: Signals
    has_agent: bool  # our agent writes how the attempt ended, and starts the MLflow process

    @property
    def number(self) -> int:
        """The attempt's number, which is its fence."""
        return self.group.fence

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.group.is_rank_zero

    def say(self, sentence: str) -> None:
        """Print on rank 0, where no agent of ours shows the progress."""
        if self.is_rank_zero and not self.has_agent:
            with suppress(OSError):  # standard output may be a file on a full disk
                clear_line()
                # as one write: torchrun runs its ranks unbuffered, and another's line may not come in between
                print(f"{sentence}\n", end="", flush=True)

    def record_start(
        self, *, first_step: int, total_steps: int, steps_per_epoch: int, is_trained: bool
    ) -> list[str]:
        """Write on rank 0 that the attempt trains now, and what is ahead of it. Collective.

        `is_trained`: no step is left, by their number or by early stopping. Gives the names of the ranks' nodes, by
        rank.
        """
        names = [name.decode() for name in self.group.gather_bytes(self.group.place.node.encode())]
        if self.is_rank_zero:
            self._record_start(names, first_step, total_steps, steps_per_epoch)
            self._say_start(first_step, total_steps, is_trained=is_trained)
        return names

    def _record_start(
        self, names: list[str], first_step: int, total_steps: int, steps_per_epoch: int
    ) -> None:
        place = self.group.place
        world_size = self.group.world_size
        started = {"first_step": first_step, "world_size": world_size}
        line = {
            "event": "start",
            "attempt": self.number,
            "time": time.time(),
            "nodes": sorted(set(names)),
        }
        job = {"job": place.job, "restart": place.restart} if place.job else {}
        self.run.record({**line, **started, **job})
        self.run.write_status(Status("running", step=first_step))
        self.journal.event(
            "started",
            **started,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            device=str(self.group.device),
        )
        self.journal.sync()

    def _say_start(self, first_step: int, total_steps: int, *, is_trained: bool) -> None:
        begins = f"going on at step {first_step} of" if first_step else "training"
        what = f"{begins} {total_steps} steps, world size {self.group.world_size}"
        if is_trained:
            what = f"its training was finished at step {first_step} already"
        self.say(f"{self.run.path.name}: {what}, in {self.run.path}")

    @contextmanager
    def told(self, step: Callable[[], int]) -> Iterator[ExitStack]:
        """After an exception in this block: do what was pushed on the stack, and write how the attempt ended.

        Only where no agent of ours does, and the process may live on. Never waits for a peer.
        """
        stack = ExitStack()
        try:
            yield stack
        except BaseException as error:
            if not self.has_agent:
                with suppress(Exception):  # the error under way is the one to show
                    stack.close()
                clear_line()
                with suppress(OSError, StorageError):
                    self._record_failure(error, step() or None)
            raise

    def _record_failure(self, error: BaseException, step: int | None) -> None:
        if not self.is_rank_zero:
            return
        message = str(error) or type(error).__name__
        self.journal.event("ended", state="failed", step=step)
        self.journal.sync()
        code = error.exit_code if isinstance(error, DistTrainerError) else 1
        line = {"event": "end", "attempt": self.number, "time": time.time(), "last_step": step}
        self.run.record({**line, "cause": "failed", "exit_code": code, "error": message})
        # a newer attempt tells how it stands, and a peer that failed first told why
        is_told = isinstance(error, PeerFailed) and self.run.read_status().state == "failed"
        if not is_told and self.run.highest_fence() <= self.number:
            self.run.write_status(Status("failed", message, step))

    def record_end(self, status: Status) -> None:
        """Write how the attempt ended in good order; on rank 0."""
        if not self.is_rank_zero:
            return
        self.journal.event("ended", state=status.state, step=status.step)
        self.journal.sync()
        line = {"event": "end", "attempt": self.number, "time": time.time(), "last_step": status.step}
        self.run.record({**line, "cause": status.reason or status.state, "exit_code": 0})
        self.run.write_status(status)
        on = ", saved; the same command goes on from there" if status.state == "stopped" else ""
        self.say(f"{self.run.path.name}: {status.state} at step {status.step}{on}")


@contextmanager
def begin(open_run: Callable[[], RunFolder], launch: LaunchConfig, signals: Signals) -> Iterator[Attempt]:
    """Join the other ranks and take part in a new attempt. Collective.

    `open_run` gives the run's folder, and on rank 0 makes it where it does not exist. Under our agent the
    fence is taken and the run locked already; otherwise rank 0 does both. After a failure the group is not
    left in order: that could wait for a peer that is gone.
    """
    place = Place.from_environment()
    has_agent = place.fence is not None
    with ExitStack() as stack:

        def take_fence() -> int:
            run = open_run()
            stack.enter_context(run.lock())
            return run.new_fence({"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()})

        if place.fence is not None:  # a rank that waits for others to come says so
            beat_once(open_run(), place.rank, place.fence, "joining")
        group = join(launch.device, timeout_s=launch.timeout_s, take_fence=take_fence)
        run = open_run()
        journal = stack.enter_context(
            Journal(run.journal_path(group.rank), attempt=group.fence, rank=group.rank)
        )
        heartbeat = Heartbeat(run.heartbeat_path(group.rank), rank=group.rank, attempt=group.fence)
        stack.callback(heartbeat.close)
        heartbeat.beat(0, "start-up")
        group.waiting = partial(heartbeat.waiting, "exchange")
        try:
            yield Attempt(run, group, journal, heartbeat, signals, has_agent)
        except BaseException:
            if group.world_size == 1:  # nobody to wait for, and this process may try again
                group.leave()
            raise
        group.leave()


def beat_once(run: RunFolder, rank: int, attempt: int, phase: str) -> None:
    """A word from a rank that has taken no step yet."""
    heartbeat = Heartbeat(run.heartbeat_path(rank), rank=rank, attempt=attempt)
    heartbeat.beat(0, phase)
    heartbeat.close()
