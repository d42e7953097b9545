"""How long a run takes to train on after a fault, and how much of its time is useful with one."""

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.trained import run, ticks, training
from tests.launchers.processes import Command
from tests.training_command import Training

STEPS = 1500
AT_STEP = 1100  # half way between two checkpoints, as a fault is on average
TIMEOUT_S = 10
QUANTITIES = [
    Quantity("from the command to the first step", "s", as_ratio=False),
    Quantity("from the fault to the next attempt's first step", "s", as_ratio=False),
    Quantity("steps done again", "steps", as_ratio=False),
    Quantity("wall time", "s"),
    Quantity("useful share of time", "%", 100, as_ratio=False),
]

Fault = Callable[[Training, Command], float]  # when it struck, in unix seconds


def measure(rounds: int) -> list[Row]:
    """In turns: nothing, a rank killed, one that hangs, the command killed and given again."""
    variants: dict[str, Callable[[], Sample]] = {
        "nothing happens": lambda: _sample(_nothing),
        "a rank is killed": lambda: _sample(_kill_rank),
        "the command is killed, and given again": lambda: _sample(_kill_command),
        f"a rank hangs, launch.timeout_s={TIMEOUT_S}": lambda: _sample(_stop_rank),
    }
    return rows("recovery", in_turns(variants, rounds), QUANTITIES, baseline="nothing happens")


def _nothing(one: Training, command: Command) -> float:
    return time.time()


def _kill_rank(one: Training, command: Command) -> float:
    pid = one.wait_for_step(AT_STEP, rank=1)
    struck = time.time()
    command.kill_other(pid)
    return struck


def _stop_rank(one: Training, command: Command) -> float:
    pid = one.wait_for_step(AT_STEP, rank=1)
    struck = time.time()
    os.kill(pid, signal.SIGSTOP)
    return struck


def _kill_command(one: Training, command: Command) -> float:
    one.wait_for_step(AT_STEP)
    struck = time.time()
    command.send(signal.SIGKILL)
    command.finish()  # its end is a part of what the fault costs
    return struck


def _sample(fault: Fault) -> Sample:
    hit: list[float] = []

    def strike(command: Command) -> None:
        hit.append(fault(one, command))

    with training(f"launch.timeout_s={TIMEOUT_S}", steps=STEPS) as one:
        began = time.time()
        if fault is _kill_command:
            strike(one.start())
            ended = run(one)
        else:
            ended = run(one, meanwhile=strike)
        done = ticks(one)
    last = {tick.step: tick for tick in done}
    usual_s = median(after.time - before.time for before, after in pairwise(done))
    sample = {
        "from the command to the first step": done[0].time - began,
        "steps done again": float(len(done) - len(last)),
        "wall time": ended - began,
        "useful share of time": STEPS * usual_s / (ended - began),
    }
    if fault is not _nothing:
        again = next(tick for tick in done if tick.attempt > 1)
        sample["from the fault to the next attempt's first step"] = again.time - hit[0]
    return sample
