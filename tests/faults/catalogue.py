"""What can go wrong in a training, and when: the faults and the moments that random trials draw from."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dist_trainer import errors
from dist_trainer.tracking.heartbeat import Beat, read_heartbeat
from tests.faults.recipe import EVAL_EVERY, STEPS
from tests.launchers.processes import Command, catches, parent_of
from tests.training_command import Training

LAUNCHER_IS_UP_S = 2.5  # about as long as the command takes before it has ranks
MLFLOW = "tracking.uri=sqlite:///mlflow.db"
RANKS = 3


class Missed(Exception):
    """The fault came too late: what it was to hit had ended."""


@dataclass
class Scene:
    """What a fault can hit: a training, its command that runs now, and the dice."""

    training: Training
    command: Command
    draw: random.Random
    rank: int
    limit_s: float = 60.0

    def until(self, condition: Callable[[], bool], *, poll_s: float = 0.002) -> None:
        """Look very often whether it holds; Missed where the command ends first."""
        deadline = time.monotonic() + self.limit_s
        while not condition():
            if self.command.process.poll() is not None:
                raise Missed
            assert time.monotonic() < deadline, "the moment for the fault never came"
            time.sleep(poll_s)

    def beat(self) -> Beat | None:
        return read_heartbeat(self.training.run / "heartbeat" / "rank-0")

    def step(self) -> int:
        beat = self.beat()
        return beat.step if beat else 0

    def ranks(self) -> list[int]:
        """The pids of the ranks, in their order: the forkserver's children, once all of them are there."""
        try:
            server = self.command.forkserver()
        except AssertionError:
            return []
        children = sorted(pid for pid in self.command.others() if _parent(pid) == server)
        return children if len(children) == RANKS else []

    def rank_pid(self) -> int:
        return self._first_of(self.ranks)[self.rank]

    def mlflow_pid(self) -> int:
        others = self.command.others
        return self._first_of(lambda: [pid for pid, line in others().items() if "mlflow_sync" in line])[0]

    def _first_of(self, look: Callable[[], list[int]]) -> list[int]:
        """What is there as soon as something is; it may be gone the next moment."""
        found: list[int] = []

        def there() -> bool:
            found[:] = look()
            return bool(found)

        self.until(there, poll_s=0.02)
        return found


def _parent(pid: int) -> int:
    try:
        return parent_of(pid)
    except OSError:
        return 0


def in_start_up(scene: Scene) -> None:
    """Anywhere from the first handler of a signal on to the first steps."""
    scene.until(lambda: catches(scene.command.pid, signal.SIGUSR2))
    time.sleep(scene.draw.uniform(0, LAUNCHER_IS_UP_S))


def as_the_ranks_start(scene: Scene) -> None:
    scene.rank_pid()
    time.sleep(scene.draw.uniform(0, 1.0))


def in_training(scene: Scene) -> None:
    step = scene.draw.randrange(1, STEPS)
    scene.until(lambda: scene.step() >= step)


def in_an_evaluation(scene: Scene) -> None:
    step = EVAL_EVERY * scene.draw.randrange(1, STEPS // EVAL_EVERY + 1)

    def there() -> bool:
        beat = scene.beat()
        return beat is not None and ((beat.step == step and beat.phase == "evaluate") or beat.step > step)

    scene.until(there)
    time.sleep(scene.draw.uniform(0, 0.08))


def in_a_save(scene: Scene) -> None:
    step, checkpoints = scene.draw.randrange(0, STEPS - 8), scene.training.run / "checkpoints"

    def under_way() -> bool:
        names = os.listdir(checkpoints) if checkpoints.exists() else []  # noqa: PTH208
        later = [name for name in names if name.startswith("step-") and int(name[5:14]) >= step]
        return any(not (checkpoints / name / "COMMIT.json").exists() for name in later)

    scene.until(under_way)
    time.sleep(scene.draw.uniform(0, 0.03))


def in_the_end(scene: Scene) -> None:
    scene.until(lambda: scene.step() >= STEPS)
    time.sleep(scene.draw.uniform(0, 0.4))


def once_mlflow_carries(scene: Scene) -> None:
    scene.mlflow_pid()
    time.sleep(scene.draw.uniform(0, 4.0))


BUSY = (in_training, in_training, in_an_evaluation, in_a_save, in_the_end)
Moment = Callable[[Scene], None]
Strike = Callable[[Scene], None]


def kill_rank(scene: Scene) -> None:
    _send(scene.rank_pid(), signal.SIGKILL)


def kill_command(scene: Scene) -> None:
    tell_command(signal.SIGKILL, scene)


def kill_forkserver(scene: Scene) -> None:
    try:
        server = scene.command.forkserver()
    except AssertionError:
        raise Missed from None
    _send(server, signal.SIGKILL)


def kill_mlflow(scene: Scene) -> None:
    _send(scene.mlflow_pid(), signal.SIGKILL)


def freeze_rank(scene: Scene) -> None:
    pid = scene.rank_pid()
    _send(pid, signal.SIGSTOP)
    time.sleep(scene.draw.uniform(0.2, 2.0))
    _send(pid, signal.SIGCONT)


def freeze_rank_for_ever(scene: Scene) -> None:
    _send(scene.rank_pid(), signal.SIGSTOP)


def freeze_command(scene: Scene) -> None:
    tell_command(signal.SIGSTOP, scene)
    time.sleep(scene.draw.uniform(0.2, 2.0))
    scene.command.send(signal.SIGCONT)


def tell_command(number: signal.Signals, scene: Scene) -> None:
    _miss_what_ended(scene)
    scene.command.send(number)


def tell_rank(number: signal.Signals, scene: Scene) -> None:
    _send(scene.rank_pid(), number)


def tell_group(number: signal.Signals, scene: Scene) -> None:
    _miss_what_ended(scene)
    scene.command.send_to_group(number)


def tell_everything(number: signal.Signals, scene: Scene) -> None:
    _miss_what_ended(scene)
    scene.command.send_to_all(number)


def break_code(where: str, how: str, scene: Scene) -> None:
    """Whoever gets there next breaks."""
    draft = scene.training.folder / "draft"
    draft.write_text(how)
    draft.rename(scene.training.folder / f"break-{where}")


def _miss_what_ended(scene: Scene) -> None:
    """A signal to a command that has ended goes nowhere, and without an error until it has been waited for."""
    if scene.command.process.poll() is not None:
        raise Missed


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise Missed from None


@dataclass(frozen=True)
class Fault:
    """What happens, when it can, and with which codes the command that it hits may end; 0 always.

    `hangs`: whether the watchdog is to end what it leaves.
    """

    name: str
    strike: Strike
    moments: tuple[Moment, ...]
    codes: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    hangs: bool = False

    def came_too_late(self, code: int) -> bool:
        """Whether the exit code of the command that it was to hit says so: nothing outlives its own SIGKILL."""
        return code == 0 and -signal.SIGKILL in self.codes


_TERM, _USR2, _INT = signal.SIGTERM, signal.SIGUSR2, signal.SIGINT
_STOPPED = (errors.STOPPED,)
_IN_LOADERS = ("data.num_workers=2",)
_RANKS = (as_the_ranks_start, *BUSY)
_ANY = (in_start_up, *BUSY)
_READING = (in_start_up, in_training, in_training, in_an_evaluation)
FAULTS = (
    Fault("SIGKILL of a rank", kill_rank, _RANKS),
    Fault("SIGKILL of the command", kill_command, _ANY, (-signal.SIGKILL,)),
    Fault("SIGTERM to the command", partial(tell_command, _TERM), _ANY, _STOPPED),
    Fault("SIGUSR2 to one rank", partial(tell_rank, _USR2), _RANKS, _STOPPED),
    Fault("exception in a step", partial(break_code, "step", "no such luck"), (in_start_up, in_training)),
    Fault("exit of a loader process", partial(break_code, "row", "os._exit 3"), _READING, (), _IN_LOADERS),
    Fault("SIGSTOP of a rank for a while", freeze_rank, _RANKS),
    # a child of it checks the configuration in start-up, and its death is an error with a message: 1
    Fault("SIGKILL of the forkserver", kill_forkserver, _ANY, (1,)),
    Fault("SIGUSR2 to every process", partial(tell_everything, _USR2), _ANY, _STOPPED),
    Fault("SIGKILL of the MLflow process", kill_mlflow, (once_mlflow_carries,), (), (MLFLOW,)),
    Fault("SIGSTOP of the command for a while", freeze_command, _ANY),
    Fault("SIGKILL of the command, with MLflow", kill_command, BUSY, (-signal.SIGKILL,), (MLFLOW,)),
    Fault("SIGKILL of a rank, with MLflow", kill_rank, BUSY, (), (MLFLOW,)),
    Fault("SIGTERM to one rank", partial(tell_rank, _TERM), _RANKS, _STOPPED),
    Fault("SIGTERM to every process", partial(tell_everything, _TERM), _ANY, _STOPPED),
    Fault("SIGTERM to the process group", partial(tell_group, _TERM), _ANY, _STOPPED),
    Fault("SIGUSR2 to the process group", partial(tell_group, _USR2), _ANY, _STOPPED),
    Fault("SIGUSR2 to the command", partial(tell_command, _USR2), _ANY, _STOPPED),
    Fault("SIGINT to the process group", partial(tell_group, _INT), _ANY, _STOPPED),
    Fault("exception in reading a row", partial(break_code, "row", "a bad day"), _READING),
    Fault("os._exit(0) in reading a row", partial(break_code, "row", "os._exit 0"), _READING),
    Fault("os._exit(5) after a step", partial(break_code, "step", "os._exit 5"), (in_start_up, in_training)),
    Fault("sys.exit in reading a row", partial(break_code, "row", "sys.exit 0"), _READING),
    Fault(
        "sys.exit in a loader process", partial(break_code, "row", "sys.exit 1"), _READING, (), _IN_LOADERS
    ),
    # nobody but the watchdog ends a rank that is stopped for good
    Fault(
        "SIGSTOP of a rank for ever", freeze_rank_for_ever, _RANKS, (), ("launch.timeout_s=5",), hangs=True
    ),
)
