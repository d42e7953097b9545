"""What the launcher of an evaluation or prediction tells its workers, and the names of the files between them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_trainer.adapters.files import write_json

_REQUEST, RESULT = "request.json", "result.json"


@dataclass(frozen=True)
class Request:
    """What to do: `output` is the file of a prediction, and None for an evaluation."""

    run: str
    split: str
    checkpoint: str  # last, best or a step's number
    output: str | None = None
    samples: int = 0  # so many samples and all targets go into the file too, for a page that shows them

    def write(self, folder: Path) -> None:
        """Put it where the workers look."""
        write_json(folder / _REQUEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """The request in a scratch run folder."""
        return cls(**json.loads((folder / _REQUEST).read_text()))
