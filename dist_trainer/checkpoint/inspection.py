"""What is in a checkpoint, for people: names, shapes and sizes, from headers alone and without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from dist_trainer.adapters.storage import Buffer
from dist_trainer.checkpoint.header import read_header
from dist_trainer.checkpoint.manifest import Checkpoint


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: its type is the stored one, as safetensors names it."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Summary:
    """A checkpoint at a glance."""

    name: str
    step: int
    fence: int
    metrics: dict[str, float]
    files: dict[str, int]  # sizes in bytes
    tensors: list[TensorSummary]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(self.files.values())


def inspect(checkpoint: Checkpoint, files: Mapping[str, Buffer]) -> Summary:
    """Summarize what `CheckpointStore.read` gave. Raises CorruptCheckpoint."""
    tensors = []
    for file, content in files.items():
        if not file.endswith(".safetensors"):
            continue
        for name, entry in read_header(content, len(content)).entries.items():
            tensors.append(TensorSummary(file, name, entry.dtype, entry.shape, entry.end - entry.start))
    sizes = {file: len(content) for file, content in files.items()}
    return Summary(checkpoint.name, checkpoint.step, checkpoint.fence, checkpoint.metrics, sizes, tensors)
