"""How long the ranks stand still when one is killed: this project's agent beside torchrun's restart.

From SIGKILL of rank 1 of 2 until the end of the next attempt's first step, on the same small net with the same
batch, a checkpoint every 50 steps, and no pause between the steps.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.compared import HERE, beside_peer
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure
from benchmarks.peers import restarting
from benchmarks.trained import Tick, training
from tests.launchers.processes import Command, wait_for

STEPS = 100_000  # more than are ever done: what is left of the training ends with the measurement
KILLED_AT = 125  # half way between two checkpoints
PEER = "torchrun --max-restarts"
# without it torchrun's next attempt finds the dead group's addresses in the store, and often never begins
_NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_PATIENCE_S = 120.0


def measure(rounds: int) -> list[Figure]:
    """In turns."""
    samples = in_turns({HERE: here, PEER: torchrun}, rounds)
    what = "from a killed worker to the next step"
    return [beside_peer(samples, what, "s", "restart", peer=PEER, goal=0.4)]


def here() -> Sample:
    """The command, `dist-trainer train`."""
    with training(f"checkpoint.every_steps={restarting.SAVES_EVERY}", steps=STEPS) as one:
        command = one.start()
        pid = one.wait_for_step(KILLED_AT, rank=1, timeout_s=_PATIENCE_S)
        return _kill(command, pid, one.folder)


def torchrun() -> Sample:
    """The loop written by hand."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    command = Command(
        sys.executable, *arguments, restarting.__file__, str(STEPS), folder=folder, environment=_NEW_STORE
    )
    try:
        _first_tick(folder, command, lambda tick: tick.step >= KILLED_AT)
        return _kill(command, int((folder / "pid-1").read_text()), folder)
    finally:
        command.end()
        shutil.rmtree(folder)


def _kill(command: Command, pid: int, folder: Path) -> Sample:
    struck = time.time()
    command.kill_other(pid)
    again = _first_tick(folder, command, lambda tick: tick.attempt > 1)
    return {"restart": again.time - struck, "first step": float(again.step)}


def _first_tick(folder: Path, command: Command, is_meant: Callable[[Tick], bool]) -> Tick:
    """Wait for it, as long as the command lives."""

    def found() -> list[Tick]:
        if command.process.poll() is not None:
            command.finish()
            raise RuntimeError(f"ended with {command.process.returncode}: {command.stderr}")
        return [tick for tick in _ticks(folder) if is_meant(tick)][:1]

    tick: Tick = wait_for(found, timeout_s=_PATIENCE_S, what=f"a step in {folder}")[0]
    return tick


def _ticks(folder: Path) -> list[Tick]:
    """The steps so far, but one whose line is still being written."""
    clock = folder / "clock.jsonl"
    text = clock.read_text() if clock.exists() else ""
    return [Tick(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]
