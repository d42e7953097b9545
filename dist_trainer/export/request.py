"""What an export is asked for, and the names of the files by which its processes tell each other. No torch.

<work>/request.json       what to write: Request
<work>/made/              the model's files
<work>/answer.json        {"problem", "exit_code"}, or {"card": ...}: see card.py
<work>/calls.safetensors  tensors of the example calls and of what the run's model gives for them
<work>/job.json           what is compared: see loading.py
<work>/compared.json      how it compares: there too
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_trainer.adapters.files import write_json
from dist_trainer.config.near import did_you_mean
from dist_trainer.errors import UsageError

FILES = {
    "state_dict": "model.pt",
    "safetensors": "model.safetensors",
    "torch-export": "model.pt2",
    "onnx": "model.onnx",
    "torchscript": "model.torchscript.pt",
}
ONNX_WEIGHTS = "model.onnx.data"  # beside model.onnx where it would be too large
WEIGHTS_ALONE = frozenset({"state_dict", "safetensors"})  # these need the model's class to be loaded
METHODS = ("trace", "script")
BATCH_SIZES = (1, 7)
TOLERANCE = 1e-5  # of the largest value of an output
REQUEST, MADE, ANSWER, CALLS, JOB = "request.json", "made", "answer.json", "calls.safetensors", "job.json"
COMPARED = "compared.json"


@dataclass(frozen=True)
class Request:
    """`method` is how TorchScript is made, and nothing for other formats."""

    run: str
    format: str
    method: str
    checkpoint: str  # last, best, a step's number or a folder's name

    def write(self, folder: Path) -> None:
        """Put it where the writer looks."""
        write_json(folder / REQUEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """The request in a work folder."""
        return cls(**json.loads((folder / REQUEST).read_text()))

    @property
    def words(self) -> str:
        """The format as a person asks for it."""
        return f"torchscript by --method {self.method}" if self.format == "torchscript" else self.format


def make_request(run: Path, format: str, method: str | None, checkpoint: str) -> Request:
    """The request that a command's options mean. Raises UsageError."""
    if format not in FILES:
        raise UsageError(
            f"--format must be one of {', '.join(FILES)}, got {format!r}{did_you_mean(format, FILES)}"
        )
    if method is not None and format != "torchscript":
        raise UsageError(f"--method {method}: is for --format torchscript alone")
    if method is not None and method not in METHODS:
        raise UsageError(f"--method must be {' or '.join(METHODS)}, got {method!r}")
    return Request(str(run), format, method or METHODS[0], checkpoint)


def answer_problem(folder: Path, problem: str, exit_code: int) -> None:
    """Leave word of what went wrong."""
    write_json(folder / ANSWER, {"problem": problem, "exit_code": exit_code})


def read_answer(folder: Path) -> dict[str, Any]:
    """What the writer left; FileNotFoundError where it came to no end."""
    found: dict[str, Any] = json.loads((folder / ANSWER).read_text())
    return found
