"""What tracking needs of a run's configuration: where MLflow is, and where the checkpoints are."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config.schema import TrackingConfig
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.run_folder import RunFolder

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)")
_SERVER_S, _START_S = 10.0, 60.0


@dataclass(frozen=True)
class RunSettings:
    """Every path absolute."""

    name: str
    uri: str | None  # None: the journal alone
    experiment: str
    checkpoints: str  # a local path, or a place in a store

    @classmethod
    def read(cls, run: RunFolder) -> "RunSettings":
        """From config.yaml; what it leaves out has the schema's default."""
        tree, _ = read_yaml(run.config_path.read_text(), str(run.config_path))
        config = (tree and tree.plain()) or {}
        info = run.info()
        tracking = TrackingConfig.model_validate(_section(config, "tracking"))
        uri = tracking.uri and resolve_uri(tracking.uri, info.working_folder)
        place = run.checkpoint_url(_section(config, "checkpoint").get("folder"))
        return cls(run.path.name, uri, tracking.experiment, place)

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

        A server may not answer. A file always does: what takes time there is the start of MLflow, at the lowest
        priority, where the training was shorter than that.
        """
        return _SERVER_S if self.is_server else _START_S


def database_of(uri: str) -> Path | None:
    """The file of a sqlite URI."""
    match = _SQLITE.fullmatch(uri)
    return Path(match[2]) if match else None


def resolve_uri(uri: str, folder: Path) -> str:
    """`uri` with a relative sqlite file or local folder taken from `folder`."""
    match = _SQLITE.fullmatch(uri)
    if match:
        return f"{match[1]}{folder / match[2]}{match[3]}"
    return uri if ":" in uri or uri == "databricks" else str(folder / uri)


def _section(config: Any, name: str) -> dict[str, Any]:
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}
