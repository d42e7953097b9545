"""Everything that is looked at on one machine, side by side."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dist_trainer.doctor import cluster, machine, network, versions
from dist_trainer.doctor.checks import Check, run_checks
from dist_trainer.doctor.file_system import check_clock, check_promises, check_room
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.mlflow_server import check_mlflow
from dist_trainer.doctor.mounts import check_kind
from dist_trainer.doctor.stores import check_store
from dist_trainer.doctor.subject import Subject

RUN_FOLDER = "run folder"
_DISK_S = 15.0
_STORE_S = 12.0
_DISK = (
    "a disk or its server that does not answer hangs a training too: dmesg, mount; choose another with --runs"
)
_STORE = (
    "a store that does not answer costs every save: look at checkpoint.folder, its endpoint and the network"
)


def examine(
    subject: Subject,
    *,
    across: Callable[[], network.Across | None] = lambda: None,
    meet_within_s: float | None = None,
    more: Sequence[Check] = (),
    with_cluster: bool = True,
) -> list[Finding]:
    """All findings of this machine; a node meets the others by `across` within some time, and has `more` checks."""
    ranks = partial(network.check_ranks, subject, across)
    checks = [
        Check("python", versions.check_python),
        Check("packages", partial(versions.check_packages, subject), within_s=15.0),
        Check("torch", ranks, within_s=network.ranks_within_s(subject, meet_within_s=meet_within_s)),
        Check("host name", partial(network.check_names, subject), advice="the name server does not answer"),
        Check("CPU cores", partial(machine.check_cores, subject)),
        Check("/dev/shm", partial(machine.check_shared_memory, subject)),
        Check("open files", partial(machine.check_open_files, subject)),
        *_disk_checks(subject, is_tried_together=bool(more)),
        Check("checkpoints", partial(check_store, subject), within_s=_STORE_S, advice=_STORE),
        Check("MLflow", partial(check_mlflow, subject), within_s=10.0, if_hung="warning"),
        *more,
    ]
    if with_cluster:
        checks.append(Check("SLURM", partial(cluster.check_cluster, subject), within_s=30.0))
    return run_checks(checks)


def _disk_checks(subject: Subject, *, is_tried_together: bool) -> Iterator[Check]:
    many, runs = subject.config.slurm.nodes > 1 and not is_tried_together, subject.runs
    yield Check(RUN_FOLDER, partial(check_promises, RUN_FOLDER, runs), _DISK_S, _DISK)
    yield Check("file system", partial(check_kind, "file system", runs, many_nodes=many), _DISK_S, _DISK)
    yield Check("free space", partial(check_room, "free space", runs), _DISK_S, _DISK)
    yield Check("clock", partial(check_clock, "clock", runs), _DISK_S, _DISK)
    folder = subject.config.checkpoint.folder
    if folder is not None and "://" not in subject.store:
        place = Path(subject.store)
        name = "checkpoint disk"
        yield Check(name, partial(check_room, name, place), _DISK_S, _DISK)
