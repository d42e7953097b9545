"""`dist-trainer checkpoint`: what a run's checkpoints are, whether they are whole, and what is in them."""

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dist_trainer.config.schema import BestConfig, CheckpointConfig
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint, UsageError
from dist_trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore

LIST_LIMIT = 10


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


def choose(checkpoints: "list[Checkpoint]", which: str, config: CheckpointConfig) -> "Checkpoint":
    """`last`, `best` (by checkpoint.keep_best, else val/loss), a step or a folder's name, of a newest-first list.

    Raises UsageError that names those that are there.
    """
    if which == "last" and checkpoints:
        return checkpoints[0]
    if which == "best":
        return _best(checkpoints, config.keep_best or BestConfig())
    for checkpoint in checkpoints:
        if which in (str(checkpoint.step), checkpoint.name):
            return checkpoint
    there = ", ".join(str(each.step) for each in checkpoints[:LIST_LIMIT])
    raise UsageError(
        f"no checkpoint {which!r}; {f'there are steps {there}' if there else 'none was saved yet'}"
    )


def _best(checkpoints: "list[Checkpoint]", config: BestConfig) -> "Checkpoint":
    from dist_trainer.checkpoint.retention import best

    found = best(checkpoints, config)
    if found is None:
        raise UsageError(f"no checkpoint has {config.metric}, so none is the best; use last or a step")
    return found


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
    from dist_trainer.adapters.storage import Storage
    from dist_trainer.checkpoint.store import CheckpointStore

    info, folder = run.info(), _settings(run).folder
    if folder is None:
        url = str(run.checkpoints)
    else:  # a relative folder is relative to where the run was begun
        base = folder if "://" in folder else str(info.working_folder / folder)
        url = f"{base.rstrip('/')}/{info.run_id}"
    return CheckpointStore(Storage(url), fence=0, highest_fence=run.highest_fence)


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
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(markup=False, highlight=False, soft_wrap=True).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {item:g}" for key, item in value.items())
    return str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))
