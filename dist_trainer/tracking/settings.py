"""What tracking needs of a run's configuration: where MLflow is, and where the checkpoints are."""

import re
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config.load import read_section
from dist_trainer.config.references import resolve
from dist_trainer.config.schema import CheckpointConfig, TrackingConfig
from dist_trainer.run_folder import RunFolder

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)")
_SERVER_S, _START_S = 9.0, 60.0  # with the end itself the command then takes ten


@dataclass(frozen=True)
class RunSettings:
    """Every path absolute."""

    name: str
    uri: str | None  # None: the journal alone
    experiment: str
    checkpoints: str  # a local path, or a place in a store
    checkpoints_shown: str  # the same for messages

    @classmethod
    def read(cls, run: RunFolder) -> "RunSettings":
        """From config.yaml; what it leaves out has the schema's default."""
        tracking = read_section(run.config_path, "tracking", TrackingConfig)
        uri = tracking.uri and resolve_uri(tracking.uri, run.info().working_folder)
        folder = read_section(run.config_path, "checkpoint", CheckpointConfig).folder
        places = run.checkpoint_url(folder), run.checkpoint_url(folder, shown=True)
        return cls(run.path.name, uri, tracking.experiment, *places)

    @property
    def database(self) -> Path | None:
        """The file of a sqlite store."""
        return database_of(self.uri or "")

    @property
    def is_server(self) -> bool:
        """Whether MLflow is reached over HTTP."""
        return (self.uri or "").startswith(("http://", "https://"))

    @property
    def patience_s(self) -> float:
        """How long the end of a training waits for MLflow; `dist-trainer sync` brings what is left.

        A server may not answer. A file always does: what takes time there is the start of MLflow, which gives
        way to others, where the training was shorter than that.
        """
        return _SERVER_S if self.is_server else _START_S


def database_of(uri: str) -> Path | None:
    """The file of a sqlite URI."""
    match = _SQLITE.fullmatch(uri)
    return Path(match[2]) if match else None


def resolve_uri(uri: str, folder: Path) -> str:
    """`uri` with its references put in, and a relative sqlite file or local folder taken from `folder`."""
    uri = resolve(uri)
    match = _SQLITE.fullmatch(uri)
    if match:
        return f"{match[1]}{folder / match[2]}{match[3]}"
    return uri if ":" in uri or uri == "databricks" else str(folder / uri)
