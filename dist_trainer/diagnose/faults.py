"""The faults that a drill can bring about, and how: each to a training whose ranks wait at the step of the fault."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.store import CheckpointStore
from dist_trainer.config.load import read_config
from dist_trainer.config.near import did_you_mean
from dist_trainer.diagnose.drilled import Drilled
from dist_trainer.diagnose.rehearsal import KILL_IN_SAVE, RAISE
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.launchers.processes import send
from dist_trainer.run_folder import RunFolder

Changes = Mapping[str, Mapping[str, Any]]
_NOBODY_THERE = "http://127.0.0.1:1"  # no MLflow: the port of tcpmux, at which this machine refuses
_HANGS_S = 8.0
_MODEL = "model.safetensors"


@dataclass(frozen=True)
class Fault:
    """`strike` brings it about; `changes` go over the configuration of the training that it is done to."""

    name: str
    says: str
    strike: Callable[[Drilled], None]
    changes: Changes = field(default_factory=dict)
    in_save: bool = False  # struck at a step after which a checkpoint is written
    needs_loaders: bool = False


def _last_rank(training: Drilled) -> int:
    return training.world_size - 1


def _kill_rank(training: Drilled) -> None:
    pid = training.pid_of(_last_rank(training))
    training.strike()
    send(pid, signal.SIGKILL)


def _stop_rank(training: Drilled) -> None:
    pid = training.pid_of(_last_rank(training))
    training.strike()
    send(pid, signal.SIGSTOP)


def _raise(training: Drilled) -> None:
    training.strike({RAISE: _last_rank(training)})


def _kill_in_save(training: Drilled) -> None:
    training.strike({KILL_IN_SAVE: True})


def _kill_command(training: Drilled) -> None:
    training.signal(signal.SIGKILL)
    training.strike()


def _signal(number: signal.Signals) -> Callable[[Drilled], None]:
    def strike(training: Drilled) -> None:
        training.signal(number)
        time.sleep(0.3)  # the agent looks ten times a second; the ranks wait for this
        training.strike()

    return strike


def _kill_loader(training: Drilled) -> None:
    """Or the first process that the rank started, which is one."""
    rank = training.pid_of(_last_rank(training))
    loaders = sorted(pid for pid in training.processes() if _parent_of(pid) == rank)
    if not loaders:
        raise DistTrainerError(f"rank {_last_rank(training)} has no loader process")
    training.strike()
    send(loaders[0], signal.SIGKILL)


def _rot(training: Drilled) -> None:
    _kill_command(training)
    training.wait()
    training.left()
    store = store_of(training.run)
    newest = store.list()[0]
    name = f"{newest.name}/{_MODEL}"
    content = bytearray(store.storage.read(name))
    content[len(content) // 2] ^= 1
    store.storage.delete(name)
    store.storage.write(name, bytes(content))


def _nothing(training: Drilled) -> None:
    training.strike()


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def store_of(run: RunFolder) -> CheckpointStore:
    """The checkpoints of a drill's run, to be looked at."""
    return open_store(run, read_config(run.config_path).checkpoint, report=lambda message: None)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill-rank", "one rank gets SIGKILL, as when memory runs out", _kill_rank),
        Fault("kill-launcher", "the command gets SIGKILL, as when its machine goes down", _kill_command),
        Fault("stop-signal", "the command gets SIGTERM, and is given again", _signal(signal.SIGTERM)),
        Fault("requeue-signal", "SIGUSR2: the scheduler wants the machine back", _signal(signal.SIGUSR2)),
        Fault(
            "hang-rank",
            "one rank stands still (SIGSTOP)",
            _stop_rank,
            {"launch": {"timeout_s": _HANGS_S}},
        ),
        Fault("exception", "one rank raises an exception, once", _raise),
        Fault(
            "loader-exit",
            "a process that loads data dies (with data.num_workers)",
            _kill_loader,
            needs_loaders=True,
        ),
        Fault("rotten-checkpoint", "killed, and a bit of the newest checkpoint flips", _rot),
        Fault(
            "kill-in-save", "rank 0 gets SIGKILL while it writes a checkpoint", _kill_in_save, in_save=True
        ),
        Fault(
            "mlflow-down", "nobody answers at tracking.uri", _nothing, {"tracking": {"uri": _NOBODY_THERE}}
        ),
    )
}
ALL = "all"


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults of these names, or all of them; UsageError names the near ones."""
    for name in names:
        if name not in FAULTS and name != ALL:
            near = did_you_mean(name, [*FAULTS, ALL])
            raise UsageError(f"there is no fault {name!r}{near}; dist-trainer drill --list shows them")
    return [fault for name, fault in FAULTS.items() if name in names or ALL in names]
