"""`dist-trainer checkpoint`: what a run's checkpoints are, whether they are whole, and what is in them."""

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint
from dist_trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore


def list_checkpoints(run: RunFolder, *, as_json: bool) -> int:
    """Print the committed ones, newest first."""
    store = _store(run)
    rows = [_row(checkpoint) for checkpoint in store.list()]
    if as_json:
        _print_json({"run": str(run.path), "folder": store.storage.url, "checkpoints": rows})
        return 0
    _print_rows(rows, f"no checkpoint in {store.storage.url} yet")
    return 0


def verify_checkpoints(run: RunFolder, *, as_json: bool) -> int:
    """Check every byte; 1 if some are bad, 65 if all are."""
    store = _store(run)
    rows = [{"name": each.name, "step": each.step, "problem": _problem(store, each)} for each in store.list()]
    bad = [row for row in rows if row["problem"]]
    if as_json:
        _print_json({"run": str(run.path), "folder": store.storage.url, "ok": not bad, "checkpoints": rows})
    else:
        shown = [{"name": row["name"], "result": row["problem"] or "whole"} for row in rows]
        _print_rows(shown, f"no checkpoint in {store.storage.url} yet")
    if bad and len(bad) == len(rows):
        return NoUsableCheckpoint.exit_code
    return CorruptCheckpoint.exit_code if bad else 0


def inspect_checkpoint(run: RunFolder, which: str, *, as_json: bool) -> int:
    """Print the files and tensors of one."""
    from dist_trainer.checkpoint.choose import choose
    from dist_trainer.checkpoint.inspection import inspect

    store = _store(run)
    checkpoint = choose(store.list(), which, _settings(run))
    summary = inspect(checkpoint, store.read(checkpoint))
    tensors = [{**vars(tensor), "shape": list(tensor.shape)} for tensor in summary.tensors]
    if as_json:
        _print_json({**_row(checkpoint), "files": summary.files, "info": checkpoint.info, "tensors": tensors})
        return 0
    print(f"{summary.name}: step {summary.step}, {summary.size_bytes:,} bytes")
    for name, value in summary.metrics.items():
        print(f"{name} {value:g}")
    _print_rows(
        [{**tensor, "shape": "x".join(map(str, tensor["shape"]))} for tensor in tensors], "no tensors"
    )
    return 0


def _problem(store: "CheckpointStore", checkpoint: "Checkpoint") -> str | None:
    try:
        store.verify(checkpoint)
    except CorruptCheckpoint as error:
        return str(error)
    return None


def _settings(run: RunFolder) -> CheckpointConfig:
    """Read alone: a run that Python began has settings and no whole configuration."""
    tree, _ = read_yaml(run.config_path.read_text(), str(run.config_path))
    section = (tree.plain() or {}).get("checkpoint") if tree is not None else None
    return CheckpointConfig.model_validate(section or {})


def _store(run: RunFolder) -> "CheckpointStore":
    from dist_trainer.checkpoint.choose import open_store

    return open_store(run, _settings(run))


def _row(checkpoint: "Checkpoint") -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "step": checkpoint.step,
        "attempt": checkpoint.fence,
        "metrics": checkpoint.metrics,
    }


def _print_rows(rows: list[dict[str, Any]], otherwise: str) -> None:
    if not rows:
        print(otherwise)
        return
    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")  # a name cut short could not be asked for
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(markup=False, highlight=False, soft_wrap=True).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {item:g}" for key, item in value.items())
    return str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))
