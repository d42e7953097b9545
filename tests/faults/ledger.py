"""How much of a fault is tried, and what came of it: the rows of the table in docs/reliability.md.

`make test-faults` tries a sample; `make soak` sets FAULTS=whole and FAULTS_LEDGER to a file that gets one line a row:

    {"fault": "SIGKILL at every byte of a save", "tried": 2634, "lost": 0, "note": "46 s"}

A random trial has a line of its own beside that, whose fields are those of `Trial`:

    {"trial": {"seed": 7, "fault": "SIGKILL of a rank", "codes": [0], "wall_s": 6.2, ...}}
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEDGER = "FAULTS_LEDGER"


def is_whole() -> bool:
    """Whether everything is tried, as in a soak, and not only a sample."""
    return os.environ.get("FAULTS") == "whole"


def times(sample: int, whole: int) -> int:
    """How often to try: `sample` in make test-faults, `whole` in a soak."""
    return whole if is_whole() else sample


def record(fault: str, *, tried: int, lost: int, note: str = "") -> None:
    """Note what a test tried and how often something was lost; it asserts for itself that nothing was."""
    print(f"{fault}: {tried} tried, {lost} lost{f' ({note})' if note else ''}")
    _append({"fault": fault, "tried": tried, "lost": lost, "note": note})


def record_trial(trial: Mapping[str, Any]) -> None:
    """Note how one random trial went."""
    print(f"FAULT_SEED={trial['seed']}: {json.dumps(trial)}")
    _append({"trial": dict(trial)})


def _append(line: Mapping[str, Any]) -> None:
    if path := os.environ.get(LEDGER):
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
