"""How long a user waits for the first step of two ranks, and for a command's help."""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from time import perf_counter

from benchmarks import steps
from benchmarks.compared import HERE, beside_fastest
from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.goals import Figure
from benchmarks.peers.protocol import Asked
from benchmarks.started import ACCELERATE, DIST_TRAINER, TORCHRUN, ours, peer
from benchmarks.terminal import environment

STEPS = 3
TORCH = "importing torch"
PYTHON = "starting Python"
FIRST, HELP = Quantity("first step", "s"), Quantity("help", "s")


def measure(rounds: int) -> list[Row | Figure]:
    """MLflow is on for ours, into a new file of SQLite; the peers track nothing."""
    begun = in_turns(
        {
            HERE: _ours,
            "hand-written": partial(_of_peer, "hand-written", TORCHRUN),
            "Accelerate": partial(_of_peer, "Accelerate", ACCELERATE),
            "Lightning": partial(_of_peer, "Lightning", TORCHRUN),
            TORCH: lambda: {"first step": _seconds([sys.executable, "-c", "import torch"])},
        },
        rounds,
    )
    helped = in_turns(
        {
            HERE: lambda: {"help": _seconds([*DIST_TRAINER, "--help"])},
            "Accelerate": lambda: {"help": _seconds([*ACCELERATE[:3], "--help"])},
            PYTHON: lambda: {"help": _seconds([sys.executable, "-c", ""])},
        },
        rounds,
    )
    first = "from the command to the first step's end, two ranks, over torchrun with the hand-written loop"
    shown = beside_fastest(helped, "--help", HELP, over=[PYTHON], floor=PYTHON, goal=0.3)
    return [
        beside_fastest(begun, first, FIRST, over=["hand-written"], floor=TORCH, goal=0.6),
        Figure("--help", "s", shown.here, shown.peers, shown.floor, None, goal=0.3),
        *rows("start", begun, [FIRST], baseline="hand-written"),
        *rows("--help", helped, [HELP], baseline="Accelerate"),
    ]


def _ours() -> Sample:
    return ours(steps.CONFIG, f"train.steps={STEPS}", "tracking.uri=sqlite:///mlflow.db").first_step


def _of_peer(name: str, launcher: Sequence[str]) -> Sample:
    return peer(name, Asked("linear", STEPS), launcher=launcher).first_step


def _seconds(command: Sequence[str]) -> float:
    began = perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return perf_counter() - began
