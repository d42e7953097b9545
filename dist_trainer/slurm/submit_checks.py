"""What is looked at before a job is sent, each on its own: a refusal is an error with the key to change."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dist_trainer.adapters.storage import Storage
from dist_trainer.config.load import Loaded
from dist_trainer.config.schema import Config, SlurmConfig
from dist_trainer.errors import ConfigError, StorageError, UsageError
from dist_trainer.launchers.workers import WORKERS_ON_CPU
from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.scheduler import (
    JobRecord,
    SchedulerUnavailable,
    find_by_scontrol,
    find_by_squeue,
)
from dist_trainer.slurm.submissions import is_of, jobs_of
from dist_trainer.tracking.settings import database_of, resolve_uri

_CONNECT_S = 2.0
_CORES = ("cpus-per-task", "cpus-per-gpu", "mincpus", "exclusive", "threads-per-core")
_REFUSALS = (  # SLURM's words, and the keys that they are about, the likeliest first
    (r"time limit", ("slurm.time", "slurm.partition")),
    (r"account", ("slurm.options.account", "slurm.partition")),
    (r"partition", ("slurm.partition",)),
    (r"qos", ("slurm.options.qos",)),
    (
        r"gres|gpu",
        ("slurm.options.gres", *(f"slurm.options.gpus{end}" for end in ("-per-node", "-per-task", ""))),
    ),
    (r"memory", ("slurm.options.mem", "slurm.options.mem-per-cpu", "slurm.options.mem-per-gpu")),
    (r"cpu count", ("slurm.options.cpus-per-task", "slurm.nodes")),
    (r"feature", ("slurm.options.constraint",)),
    (r"node name", ("slurm.options.nodelist", "slurm.options.exclude")),
    (r"license", ("slurm.options.licenses",)),
    (r"reservation", ("slurm.options.reservation",)),
    (r"dependency", ("slurm.options.dependency",)),
    (r"node count", ("slurm.nodes",)),
)


def refuse_live_job(run: RunFolder) -> None:
    """UsageError where a job of the run is in SLURM's hands: two would train it at once.

    The controller knows every job that lives, so the accounts are not asked: they may be down.
    """
    for submission in reversed(jobs_of(run)):
        record = find_by_squeue(submission.job) or find_by_scontrol(submission.job)
        if record is None or not is_of(record, run, submission):
            continue
        if record.is_live and not _is_just_ending(run, record):
            why = f" ({record.reason})" if record.reason else f" on {record.nodes}" if record.nodes else ""
            name = run.path.name
            raise UsageError(
                f"run {name} is submitted already: job {record.job} is {record.state}{why}; dist-trainer jobs {name} "
                f"shows it, dist-trainer cancel {name} ends it"
            )


def job_is_over(job: str) -> bool:
    """Whether a job that holds a run has lost it; where SLURM is silent it has not."""
    try:
        record = find_by_squeue(job) or find_by_scontrol(job)
    except SchedulerUnavailable:
        return False
    return record is None or not record.is_live


def _is_just_ending(run: RunFolder, record: JobRecord) -> bool:
    """Whether the run has ended, and the job only takes its time to leave the nodes."""
    return record.state == "COMPLETING" and run.read_status().state not in ("new", "running")


def batch_problems(config: Config) -> Iterator[tuple[str, str]]:
    """A global batch with fewer samples than ranks, as far as their number is known before the job starts."""
    nodes, each, size = config.slurm.nodes, workers_at_least(config), config.data.global_batch_size
    if size < nodes * each:
        yield (
            "data.global_batch_size",
            f"must be at least the world size, {nodes * each} ({nodes} nodes with {each} workers each), got {size}"
            "; every rank needs a sample in each step",
        )


def workers_at_least(config: Config) -> int:
    """The workers of a node as it will be given to us; 1 where only the node itself knows."""
    wanted = config.launch.workers_per_node
    if isinstance(wanted, int):
        return wanted
    gpus = gpus_of_node(config.slurm) if config.launch.device != "cpu" else 0
    cores = str(config.slurm.options.get("cpus-per-task", ""))
    on_cpu = min(WORKERS_ON_CPU, int(cores)) if cores.isdigit() else 1
    return max(1, min(gpus or on_cpu, config.data.global_batch_size))


def gpus_of_node(slurm: SlurmConfig) -> int:
    """The GPUs that a node's task is asked with; 0 where the options name none."""
    for name in ("gpus-per-node", "gpus-per-task"):
        if (value := slurm.options.get(name)) is not None:
            return _count(str(value).split(","))
    if (value := slurm.options.get("gres")) is not None:
        return _count([part for part in str(value).split(",") if part.split(":")[0] == "gpu"])
    return _count(str(slurm.options.get("gpus") or 0).split(",")) // slurm.nodes


def _count(parts: list[str]) -> int:
    """4, a100:4, gpu:a100:4 and gpu are four, four, four and one."""
    last = [part.rpartition(":")[2].partition("(")[0] for part in parts]
    return sum(int(number) if number.isdigit() else 1 for number in last)


def cores_hint(slurm: SlurmConfig) -> str | None:
    """A word to those who ask for no cores: SLURM's default is one."""
    if any(slurm.options.get(name) for name in _CORES):
        return None
    return "no cores are asked for, and SLURM gives each node's task one: see slurm.options.cpus-per-task"


def tracking_warning(config: Config, working_folder: Path) -> str | None:
    """Why MLflow would not get the run's metrics as things stand; training does not depend on it."""
    uri = config.tracking.uri and resolve_uri(config.tracking.uri, working_folder)
    if not uri:
        return None
    if uri.startswith(("http://", "https://")):
        problem = _connect(uri)
    elif (file := database_of(uri)) is not None:
        problem = _unwritable(file.parent)
    else:
        problem = None if ":" in uri or uri == "databricks" else _unwritable(Path(uri))
    if problem is None:
        return None
    return (
        f"MLflow at {_without_password(uri)} does not answer from here: {problem}; the run trains without it, "
        "and dist-trainer sync brings it the metrics"
    )


def _connect(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        return str(error).lower()
    return None


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be put there; None where it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def refuse_unwritable(folder: Path) -> None:
    """UsageError where a run cannot be put into the folder."""
    if problem := _unwritable(folder):
        raise UsageError(
            f"the run folder {folder} cannot be made: {problem}; choose another place with --runs"
        )


def check_store(run: RunFolder, loaded: Loaded) -> None:
    """ConfigError where the checkpoints' store is out of reach or breaks a promise that a commit needs."""
    folder = loaded.config.checkpoint.folder
    try:
        shown = run.checkpoint_url(folder, shown=True)
        storage = Storage(run.checkpoint_url(folder), shown=shown, retry_delays_s=(0.3,))
        try:
            storage.check_promises()
        finally:
            storage.close()
    except (StorageError, ImportError, ValueError) as error:
        raise loaded.error([("checkpoint.folder", f"cannot take checkpoints: {error}")]) from error


def refusal(loaded: Loaded, words: str) -> ConfigError:
    """SLURM's own words, at the key that they are about."""
    key = _key_of(loaded.config.slurm, words)
    value = _value(loaded.config.slurm, key)
    got = "" if value is None else f" ({value})"
    look = "" if key != "slurm" else "; look at nodes, partition, time and options"
    return loaded.error([(f"{key}", f"is refused by SLURM{got}: {words}{look}")])


def _key_of(slurm: SlurmConfig, words: str) -> str:
    for pattern, keys in _REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return next((key for key in keys if _value(slurm, key) is not None), keys[0])
    return "slurm"


def _value(slurm: SlurmConfig, key: str) -> object:
    section, _, name = key.removeprefix("slurm.").partition(".")
    return slurm.options.get(name) if section == "options" else getattr(slurm, section, None)
