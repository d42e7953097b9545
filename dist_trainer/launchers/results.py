"""How a training ended, as a table, a sentence or one JSON object."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_trainer.config.redact import redact
from dist_trainer.config.schema import Config
from dist_trainer.launchers.failures import Failure
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.page import page_command


@dataclass(frozen=True)
class Ending:
    """Everything there is to say at the end of `train`."""

    run: RunFolder
    config: Config
    state: str
    exit_code: int
    step: int | None
    results: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    message: str = ""
    all_tracked: bool = True
    run_again: bool = False  # another start may go better: see Outcome
    began: bool = True  # workers were started

    @property
    def checkpoints(self) -> str:
        """The folder or URL that holds the checkpoints."""
        return redact(self.run.checkpoint_url(self.config.checkpoint.folder, shown=True))


def show_results(ending: Ending, console: Console) -> None:
    """The metrics, where the checkpoints are and how to look at the curves; or how to go on."""
    name = ending.config.name
    if ending.state != "finished":
        if ending.message:
            console.print(ending.message, markup=False, soft_wrap=True)
        from_where = "goes on from there" if ending.step is not None else "starts from the beginning"
        console.print(f"{where_saved(ending.step)}; the same command {from_where}", soft_wrap=True)
        return
    console.print(f"{name}: finished at step {ending.step}", style="bold")
    if ending.results:
        table = Table(show_header=False)
        for key, value in sorted(ending.results.items(), key=_test_first):
            table.add_row(key, f"{value:.4g}", style="bold" if key.startswith("test/") else None)
        console.print(table)
    console.print(f"checkpoints  {ending.checkpoints}", markup=False, soft_wrap=True)
    for line in _tracking_lines(ending):
        console.print(line, markup=False, soft_wrap=True)


def where_saved(step: int | None) -> str:
    """What is left of a run that stopped."""
    if step is None:
        return "stopped; nothing was saved yet"
    return f"stopped; saved at step {step}" if step else "stopped before the first step"


def show_error(ending: Ending) -> None:
    """The first cause, once, where that rank's own words are, and what tells the rest."""
    print(redact(ending.message), file=sys.stderr)
    if ending.failure is not None:
        print(f"its log: {ending.failure.log}", file=sys.stderr)
    path = ending.run.path
    print(f"dist-trainer explain {path.name}{in_folder(path.parent)} tells more", file=sys.stderr)


def show_json(ending: Ending) -> None:
    """One object on standard output."""
    info = ending.run.info()
    mlflow: dict[str, Any] | None = None
    if page := page_command(ending.run):
        mlflow = {"run_id": info.mlflow_run_id, "page": page, "complete": ending.all_tracked}
    found = {
        "run": ending.config.name,
        "folder": str(ending.run.path),
        "state": ending.state,
        "exit_code": ending.exit_code,
        "step": ending.step,
        "results": dict(ending.results),
        "checkpoints": ending.checkpoints,
        "mlflow": mlflow,
        "error": redact(ending.message) or None,
        "log": str(ending.failure.log) if ending.failure else None,
    }
    print(json.dumps(found))


def show_json_error(run: str, state: str, exit_code: int, error: str | None) -> None:
    """The object for a command that ended before it had a result."""
    print(json.dumps({"run": run, "state": state, "exit_code": exit_code, "error": error}))


def _tracking_lines(ending: Ending) -> list[str]:
    page = page_command(ending.run)
    if not page:
        return []
    lines = [f"curves       {page}"]
    if not ending.all_tracked:
        lines.append(f"             not all points are there yet: dist-trainer sync {ending.config.name}")
    return lines


def _test_first(item: tuple[str, float]) -> tuple[bool, str]:
    return (not item[0].startswith("test/"), item[0])


def in_folder(runs: Path) -> str:
    """The option that a command needs where runs are not in their usual place."""
    return "" if runs == Path("runs").absolute() else f" --runs {shlex.quote(str(runs))}"
