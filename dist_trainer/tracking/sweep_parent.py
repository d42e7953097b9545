"""The run in MLflow whose children the cells of a sweep are: one a sweep, whichever cell's process comes first.

    <sweep>/mlflow.json    {"run": its id}, once it is whole
    <sweep>/mlflow.lock    held by the process that makes it, or says how the sweep stands

Its parameters are the grid. Its status follows from those of its children.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_trainer.adapters.file_lock import hold
from dist_trainer.adapters.files import write_json
from dist_trainer.config.redact import redact_value
from dist_trainer.errors import UsageError
from dist_trainer.run_folder import RunFolder
from dist_trainer.sweep_folder import SweepFolder
from dist_trainer.tracking.carrier import Unavailable
from dist_trainer.tracking.parameters import mlflow_name

_CHILD_TAG = "mlflow.parentRunId"  # MLflow's own
_SWEEP_TAG = "dist_trainer.sweep_id"
_PATIENCE_S = 30.0
_LONGEST_VALUE = 6000


def join_sweep(run: RunFolder, client: Any, child: Any, user: str) -> "SweepParent | None":
    """Make the run in MLflow a child of its sweep's; None where the run belongs to no sweep."""
    path = run.info().sweep
    if path is None:
        return None
    try:
        folder = SweepFolder.open(path)
        parent = SweepParent(folder, client, child.info.experiment_id, user)
    except UsageError:  # it was moved or removed: the run goes on without it
        return None
    if child.data.tags.get(_CHILD_TAG) != parent.run_id:
        client.set_tag(child.info.run_id, _CHILD_TAG, parent.run_id)
    return parent


def status_of(children: Sequence[str], cells: int) -> str:
    """MLflow's word for a sweep of so many cells whose children have these words. A cell without one is to come,
    unless somebody stopped the sweep."""
    for state in ("RUNNING", "SCHEDULED"):
        if state in children:
            return state
    if len(children) < cells:
        return "KILLED" if "KILLED" in children else "RUNNING"
    return next((state for state in ("FAILED", "KILLED") if state in children), "FINISHED")


class SweepParent:
    """The sweep's run in MLflow, found or created. Whatever the client raises comes out."""

    def __init__(self, folder: SweepFolder, client: Any, experiment: str, user: str) -> None:
        self._folder = folder
        self._client = client
        self._experiment = experiment
        self._path = folder.path / "mlflow.json"
        with self._alone():
            found = self._known()
            if found is None:
                found = self._made_before() or self._create(user)
                self._describe(found)
                write_json(self._path, {"run": found.info.run_id})
        self.run_id: str = found.info.run_id

    def report(self) -> None:
        """Give the run the status that follows from its children's."""
        with self._alone():
            run = self._client.get_run(self.run_id)
            status = status_of(self._children(), len(self._folder.sweep.cells))
            if run.info.lifecycle_stage != "active" or run.info.status == status:
                return
            if status in ("RUNNING", "SCHEDULED"):
                self._client.update_run(self.run_id, status=status)
            else:
                self._client.set_terminated(self.run_id, status)

    def _alone(self) -> Any:
        lock: Path = self._folder.path / "mlflow.lock"
        busy = f"another cell of sweep {self._folder.path.name} keeps its run in MLflow busy"
        return hold(lock, held=lambda owner: Unavailable(busy), patience_s=_PATIENCE_S)

    def _known(self) -> Any:
        """The run that an earlier cell wrote down, unless the store is another one by now."""
        try:
            known = json.loads(self._path.read_text())["run"]
            return self._client.get_run(known)
        except FileNotFoundError:
            return None
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _made_before(self) -> Any:
        """One whose maker died before it could write it down."""
        query = f"tags.`{_SWEEP_TAG}` = '{self._folder.sweep.id}'"
        runs = self._client.search_runs([self._experiment], query, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    def _create(self, user: str) -> Any:
        sweep = self._folder.sweep
        tags = {
            _SWEEP_TAG: sweep.id,
            "dist_trainer.sweep_folder": str(self._folder.path),
            "mlflow.user": user,
        }
        created_ms = round(sweep.created * 1000)
        return self._client.create_run(self._experiment, created_ms, tags=tags, run_name=sweep.name)

    def _describe(self, run: Any) -> None:
        sweep = self._folder.sweep
        wanted = {mlflow_name(key): redact_value(key, text) for key, text in sweep.grid.items()}
        wanted |= {"cells": str(len(sweep.cells))}
        if sweep.random is not None:
            wanted |= {"random": str(sweep.random)}
        for key, value in wanted.items():
            if key not in run.data.params:
                self._client.log_param(run.info.run_id, key, value[:_LONGEST_VALUE])

    def _children(self) -> list[str]:
        query = f"tags.`{_CHILD_TAG}` = '{self.run_id}'"
        found: list[str] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            found += [run.info.status for run in page]
            token = page.token
            if not token:
                return found
