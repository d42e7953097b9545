"""The command that goes on with a run, or with the cell of a sweep, exactly as it is to be typed."""

import shlex
from contextlib import suppress
from pathlib import Path

from dist_trainer.config.load import read_config
from dist_trainer.diagnose.evidence import UNREADABLE, Evidence, whole
from dist_trainer.diagnose.machine import SlurmWord
from dist_trainer.diagnose.saved import Saved
from dist_trainer.diagnose.words import typed
from dist_trainer.launchers.results import in_folder
from dist_trainer.launchers.workers import count_workers, gpus_by_driver
from dist_trainer.sweep_folder import cell_name

PROFILE = "PROFILE.yaml"
FRESH = "--fresh"


def way_on(evidence: Evidence, slurm: SlurmWord | None, saved: Saved, options: str = "") -> str:
    """Go on with the run, or train it from the start; `options` are what is changed in it."""
    run = evidence.run
    runs = in_folder(run.path.parent)
    if not options and (cell := _cell_of(evidence)) is not None:  # which takes none
        sweep, number = cell
        return f"dist-trainer sweep resume {shlex.quote(sweep)} --only {number}{runs}"
    if evidence.config and "model" not in evidence.config:
        return f"python YOUR_SCRIPT.py {options}".rstrip()
    verb = "submit" if slurm is not None else "train"
    workers = "" if slurm is not None else _workers(evidence)
    profile = f" {PROFILE}" if slurm is not None and _has_setup(evidence) else ""
    name = _name(evidence, saved, is_fresh=FRESH in options)
    return f"dist-trainer {verb} {typed(run.config_path)}{profile}{runs}{workers}{name} {options}".rstrip()


def changed(key: str, value: str, saved: Saved) -> str:
    """A change that a run that has saved takes only when it is told to."""
    return f"{key}={value}" + (f" --allow-change {key}" if _has_saved(saved) else "")


def _has_saved(saved: Saved) -> bool:
    return saved.step is not None or saved.damaged > 0


def _cell_of(evidence: Evidence) -> tuple[str, int] | None:
    """Its sweep and its number there; None for a run that is no cell, or is one no more: a copy, or moved aside."""
    sweep = evidence.info.sweep if evidence.info else None
    name = evidence.run.path.name
    number = name.rpartition("-")[2]
    if not sweep or not number.isdecimal() or name != cell_name(Path(sweep).name, int(number)):
        return None
    beside = evidence.run.path.with_name(Path(sweep).name)  # not so of a copy in another folder
    return (beside.name, int(number)) if (beside / "sweep.json").is_file() else None


def _name(evidence: Evidence, saved: Saved, *, is_fresh: bool) -> str:
    """A run is found by its configuration's name, which a folder that was renamed, copied or moved has no more."""
    name, folder = evidence.config.get("name"), evidence.run.path.name
    if not isinstance(name, str) or name == folder:
        return ""
    allow = " --allow-change name" if _has_saved(saved) and not is_fresh else ""
    return f" {shlex.quote(f'name={folder}')}{allow}"


def _has_setup(evidence: Evidence) -> bool:
    """Whether the job needs shell lines, which submit takes from a profile alone."""
    section = evidence.config.get("slurm")
    return isinstance(section, dict) and bool(section.get("setup"))


def _workers(evidence: Evidence) -> str:
    """As many as before, where that was an option of the command: the same number gives the same bits."""
    start = evidence.last_start or {}
    size = whole(start.get("world_size"))
    if size is None or len(start.get("nodes") or ()) != 1:
        return ""
    with suppress(*UNREADABLE):
        if count_workers(read_config(evidence.run.config_path), gpus_by_driver()) != size:
            return f" --workers {size}"
    return ""
