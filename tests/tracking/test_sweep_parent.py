"""The cells of a sweep in MLflow, against real stores: children of one run, whoever comes first."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.sweep_folder import Cell, Sweep, SweepFolder, cell_name
from dist_trainer.tracking.mlflow_sync import start
from dist_trainer.tracking.sweep_parent import status_of
from tests.tracking.servers import CONFIG, Server, Stored, carry, finish, train

# MLflow's own store, opened in this process
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def make_sweep(folder: Path, uri: str, cells: int, name: str = "grid") -> SweepFolder:
    table = [
        Cell(i, {"seed": i}, cell_name(name, i), CONFIG.format(uri=uri, name=cell_name(name, i)))
        for i in range(cells)
    ]
    grid = {"seed": f"0:{cells}", "model.api_key": "one,two"}
    return SweepFolder.create(folder / "runs" / name, Sweep(name, str(folder), grid, table))


def runs_of(sweep: SweepFolder) -> list[RunFolder]:
    return [sweep.run_of(cell) for cell in sweep.sweep.cells]


def parents(sweep: SweepFolder, uri: str) -> list[Any]:
    client = MlflowClient(tracking_uri=uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    query = f"tags.`dist_trainer.sweep_id` = '{sweep.sweep.id}'"
    return list(client.search_runs(experiments, query))


def parent(sweep: SweepFolder, uri: str) -> Any:
    (only,) = parents(sweep, uri)
    return only


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store", ["server", "sqlite"])
def test_cells_that_start_at_once_have_one_parent(server: Server, tmp_path: Path, store: str) -> None:
    uri = server.uri if store == "server" else f"sqlite:///{tmp_path}/mlflow.db"
    sweep = make_sweep(tmp_path, uri, 4)
    runs = runs_of(sweep)
    for run in runs:
        run.write_status(Status("running"))
    processes = [start(run) for run in runs]
    for run in runs:
        train(run, 0, 3)
        finish(run)
    assert [process and process.wait(120) for process in processes] == [0] * 4
    found = parent(sweep, uri)
    assert (found.info.run_name, found.info.status) == ("grid", "FINISHED")
    assert found.data.params == {"seed": "0:4", "model.api_key": "***", "cells": "4"}
    assert json.loads((sweep.path / "mlflow.json").read_text()) == {"run": found.info.run_id}
    client = MlflowClient(tracking_uri=uri)
    children = client.search_runs(
        [found.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.info.run_id}'"
    )
    assert sorted(child.info.run_name for child in children) == [f"grid-000{number}" for number in range(4)]
    assert {child.info.run_id for child in children} == {run.info().mlflow_run_id for run in runs}


@pytest.mark.parametrize(
    ("children", "status"),
    [
        (["FINISHED", "FINISHED", "FINISHED"], "FINISHED"),
        (["FINISHED", "FAILED", "FINISHED"], "FAILED"),
        (["FINISHED", "KILLED", "FINISHED"], "KILLED"),
        (["FINISHED", "RUNNING", "FAILED"], "RUNNING"),
        (["SCHEDULED", "KILLED", "FAILED"], "SCHEDULED"),
        (["FINISHED", "FAILED"], "RUNNING"),  # one is to come
        (["FINISHED", "KILLED"], "KILLED"),  # Ctrl-C: it will not come by itself
        ([], "RUNNING"),
    ],
)
def test_the_parents_status_follows_its_childrens(children: Sequence[str], status: str) -> None:
    assert status_of(children, 3) == status


def test_the_parent_is_running_until_the_last_cell_ends_and_again_on_resume(
    server: Server, tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, server.uri, 2)
    first, second = runs_of(sweep)
    train(first, 0, 2)
    finish(first, "failed", "no")
    carry(first)
    assert parent(sweep, server.uri).info.status == "RUNNING"
    train(second, 0, 2)
    finish(second)
    carry(second)
    assert parent(sweep, server.uri).info.status == "FAILED"
    train(first, 2, 4, attempt=2)
    finish(first)
    carry(first)
    assert parent(sweep, server.uri).info.status == "FINISHED"
    assert Stored(first, server.uri).tags["mlflow.parentRunId"] == parent(sweep, server.uri).info.run_id


def test_a_parent_whose_maker_died_is_found_and_completed(server: Server, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, server.uri, 2)
    first, second = runs_of(sweep)
    finish(first)
    carry(first)
    (sweep.path / "mlflow.json").unlink()
    finish(second)
    carry(second)
    assert parent(sweep, server.uri).info.status == "FINISHED"


def test_another_store_gets_another_parent(server: Server, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, server.uri, 1)
    (run,) = runs_of(sweep)
    (sweep.path / "mlflow.json").write_text('{"run": "0123456789abcdef0123456789abcdef"}')
    finish(run)
    carry(run)
    assert (
        json.loads((sweep.path / "mlflow.json").read_text())["run"] == parent(sweep, server.uri).info.run_id
    )


def test_a_cell_goes_on_without_its_sweep(server: Server, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, server.uri, 1)
    (run,) = runs_of(sweep)
    shutil.rmtree(sweep.path)
    train(run, 0, 2)
    finish(run)
    carry(run)
    stored = Stored(run, server.uri)
    assert stored.status == "FINISHED"
    assert "mlflow.parentRunId" not in stored.tags


def test_a_parent_that_was_deleted_stays_deleted(server: Server, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, server.uri, 2)
    first, second = runs_of(sweep)
    finish(first)
    carry(first)
    MlflowClient(tracking_uri=server.uri).delete_run(parent(sweep, server.uri).info.run_id)
    finish(second)
    carry(second)
    assert parents(sweep, server.uri) == []
    assert Stored(second, server.uri).status == "FINISHED"
