"""What the files of a run say (see run_folder.py): its identity, how it stands, why a rank failed."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["new", "running", "finished", "stopped", "failed", "do-not-requeue"]


@dataclass(frozen=True)
class RunInfo:
    """What stays true of a run over all its attempts."""

    run_id: str
    created: float
    working_folder: Path  # relative paths of the configuration are relative to it
    mlflow_run_id: str | None = None
    sweep: str | None = None  # the folder of the sweep that it is a cell of
    code: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # a part of where the checkpoints are: that of a folder from elsewhere must not lead to another run's
        if not re.fullmatch(r"[0-9a-f]{1,64}", self.run_id):
            raise ValueError(f"run_id must be hexadecimal digits, got {self.run_id!r:.80}")


@dataclass(frozen=True)
class Status:
    """How a run stands: `stopped` is saved and may go on; `results` are the final metrics.

    `run_again`: stopped because the machine was wanted back, so whoever started it runs it again.
    """

    state: State
    reason: str = ""
    step: int | None = None
    time: float = field(default_factory=time.time)
    results: dict[str, float] = field(default_factory=dict)
    run_again: bool = False


@dataclass(frozen=True)
class AttemptLine:
    """What a line of attempts.jsonl may say, and as what; one that is otherwise is passed over."""

    event: str  # start, end, requeue
    attempt: int
    time: float = 0.0
    first_step: int = 0
    last_step: int | None = None
    step: int | None = None
    world_size: int = 1
    nodes: list[str] = field(default_factory=list)
    excluded: list[str] | None = None
    job: str | None = None
    restart: int = 0
    cause: str | None = None
    says: str | None = None
    node: str | None = None
    error: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True)
class WorkerError:
    """Why one rank failed."""

    time: float
    rank: int
    step: int | None
    type: str
    message: str
    traceback: str
    exit_code: int
