"""`dist-trainer checkpoint`: a run's checkpoints, whether they are whole, what is in them, and which of them go."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dist_trainer.config.load import read_section
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.errors import CorruptCheckpoint, NoUsableCheckpoint, UsageError
from dist_trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from dist_trainer.checkpoint.pruning import Pruning
    from dist_trainer.checkpoint.store import Checkpoint, CheckpointStore


_WHOLE_AGAIN = "whole again: used where no other is, or once its QUARANTINE.json is removed"


def list_checkpoints(run: RunFolder, *, as_json: bool) -> int:
    """Print the committed ones, newest first."""
    store = _store(run)
    found = store.committed()
    rows = [_row(checkpoint) for checkpoint, quarantined in found if not quarantined]
    apart = [checkpoint.name for checkpoint, quarantined in found if quarantined]
    if as_json:
        _print_json(
            {"run": str(run.path), "folder": store.storage.url, "checkpoints": rows, "quarantined": apart}
        )
        return 0
    _print_rows(rows, "no whole checkpoint" if apart else _none_in(store))
    if apart:
        print(
            f"in quarantine: {', '.join(apart)}; dist-trainer checkpoint verify {run.path.name} looks again"
        )
    return 0


def verify_checkpoints(run: RunFolder, *, as_json: bool) -> int:
    """Check every byte, also of those in quarantine; 1 if some are bad, 65 if all are."""
    store = _store(run)
    rows = [
        {"name": each.name, "step": each.step, "problem": _problem(store, each), "quarantined": quarantined}
        for each, quarantined in store.committed()
    ]
    bad = [row for row in rows if row["problem"]]
    if as_json:
        _print_json({"run": str(run.path), "folder": store.storage.url, "ok": not bad, "checkpoints": rows})
    else:
        shown = [{"name": row["name"], "result": _result(row)} for row in rows]
        _print_rows(shown, _none_in(store))
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


def prune_checkpoints(
    run: RunFolder, *, keep_last: int | None, keep_best: bool, quarantined: bool, dry_run: bool, as_json: bool
) -> int:
    """Remove what is not worth keeping, by the run's own settings or by what is given here; prints what goes."""
    from dist_trainer.checkpoint.pruning import carry_out, plan_pruning

    settings = _settings_to_keep(_settings(run), keep_last, keep_best)
    store = _store(run, quiet=True)
    proven: set[Checkpoint] = set()
    failed: dict[str, str] = {}
    if not dry_run:
        with run.lock():  # refused at once, where a command trains it
            pass
    # reading takes its time, in which a job that comes back must not find the run taken
    pruning = plan_pruning(store, settings, quarantined=quarantined, proven=proven)
    if not dry_run:
        with run.lock():
            pruning = plan_pruning(store, settings, quarantined=quarantined, proven=proven)
            failed = carry_out(store, pruning)
    about = {"run": str(run.path), "folder": store.storage.url, "dry_run": dry_run}
    if as_json:
        _print_json({**about, **pruning.as_json(), "failed": failed})
    else:
        _print_pruning(pruning, store, dry_run=dry_run)
    for name, problem in failed.items():
        print(f"{name} could not be removed: {problem}", file=sys.stderr)
    return 1 if failed else 0


def _print_pruning(pruning: "Pruning", store: "CheckpointStore", *, dry_run: bool) -> None:
    for checkpoint, problem in pruning.damaged.items():
        print(f"damaged, and {'would be ' * dry_run}set aside: {checkpoint.name}: {problem}")
    rows = [
        {"goes": each.checkpoint.name, "bytes": f"{each.size_bytes:,}", "why": each.why}
        for each in pruning.removals
    ]
    _print_rows(rows, "nothing to remove")
    _print_rows(
        [{"stays": each.name, "why": ", ".join(why)} for each, why in pruning.kept.items()], _none_in(store)
    )
    if rows:
        print(f"{pruning.size_bytes:,} bytes {'would be' if dry_run else 'are'} free again")


def _settings_to_keep(settings: CheckpointConfig, keep_last: int | None, keep_best: bool) -> CheckpointConfig:
    """The run's own, or what the command's options say instead of all of it."""
    if keep_last is None and not keep_best:
        return settings
    if keep_best and settings.keep_best is None:
        raise UsageError("--keep-best: the run has no checkpoint.keep_best that says what is best")
    return CheckpointConfig(keep_last=keep_last or 1, keep_best=settings.keep_best if keep_best else None)


def diff_checkpoints(a: str, b: str, runs: Path, *, as_json: bool) -> int:
    """Print what differs between two checkpoints: 0 where nothing does, else 1."""
    from dist_trainer.checkpoint.difference import compare
    from dist_trainer.checkpoint.difference_words import as_json_document, rows_of
    from dist_trainer.checkpoint.locate import locate

    one, two = locate(a, runs), locate(b, runs)
    found = compare(one, two)
    if as_json:
        _print_json(as_json_document(one, two, found))
    else:
        print(f"a: {one.where}\nb: {two.where}")
        for rows in filter(None, rows_of(found)):
            _print_rows(rows, "")
        same = f"{found.num_same} tensors are the same"
        print(f"the same: {found.num_same} tensors and all values" if found.is_none else same)
    return 0 if found.is_none else 1


def _none_in(store: "CheckpointStore") -> str:
    return f"no checkpoint in {store.storage.url} yet"


def _result(row: dict[str, Any]) -> str:
    if row["quarantined"]:
        return f"in quarantine: {row['problem']}" if row["problem"] else _WHOLE_AGAIN
    return row["problem"] or "whole"


def _problem(store: "CheckpointStore", checkpoint: "Checkpoint") -> str | None:
    try:
        store.verify(checkpoint)
    except CorruptCheckpoint as error:
        return str(error)
    return None


def _settings(run: RunFolder) -> CheckpointConfig:
    """Read alone: a run that Python began has settings and no whole configuration."""
    return read_section(run.config_path, "checkpoint", CheckpointConfig)


def _store(run: RunFolder, *, quiet: bool = False) -> "CheckpointStore":
    from dist_trainer.checkpoint.choose import open_store

    return open_store(run, _settings(run), report=(lambda message: None) if quiet else print)


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
