"""What this machine gives its processes: cores, shared memory, open files."""

import os
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

from dist_trainer.doctor.findings import Finding, State, count
from dist_trainer.doctor.subject import Subject

SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_GB_EACH = 0.25  # a few batches of images under way, for each loader process
_LITTLE_SHARED_MEMORY_GB, _ENOUGH_SHARED_MEMORY_GB = 0.1, 8.0  # a container's default is 64 MB
_FILES_EACH = 64  # of a rank or loader process: sockets, shards, shared batches
_FILES_AT_LEAST, _FILES_NEEDED = 1024, 128
_CGROUP = Path("/sys/fs/cgroup")


def check_cores(subject: Subject) -> Iterator[Finding]:
    """The cores that we may use, against the ranks and loader processes that would share them."""
    cores, each = usable_cores(), subject.config.data.num_workers
    ranks = subject.workers
    processes = ranks * (1 + each)
    found = f"{cores:g} for {count(ranks, 'rank')}"
    if each:
        found += f" with {count(each, 'loader process', many='loader processes')} each"
    if processes <= cores:
        yield Finding("CPU cores", "fine", found)
        return
    fewer = int(cores // ranks) - 1
    if ranks > cores:
        advice = f"launch.workers_per_node={max(1, int(cores))} has a core for each rank"
    else:
        advice = f"data.num_workers={max(0, fewer)} has a core for each of them"
    advice += "; in a job slurm.options.cpus-per-task asks for more" if _in_slurm(subject) else ""
    yield Finding("CPU cores", "warning", f"{found}: {processes} processes", advice)


def usable_cores() -> float:
    """Those that the scheduler and, in a container, its quota leave us."""
    allowed = float(len(os.sched_getaffinity(0)))
    for quota in (_quota(_CGROUP / "cpu.max"), _quota_of_version_1()):
        if quota is not None:
            allowed = min(allowed, quota)
    return allowed


def check_shared_memory(subject: Subject, place: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Loader processes hand their batches over through it, and NCCL its ranks on one machine."""
    each = subject.config.data.num_workers
    try:
        free_gb = _free_gb(place)
        _try_to_write(place)
    except OSError as error:
        state: State = "broken" if each else "warning"
        advice = f"mount a tmpfs at {place}; data.num_workers=0 does without it"
        yield Finding(str(place), state, f"cannot be used: {_words(error)}", advice)
        return
    loaders_gb = subject.workers * each * _SHARED_MEMORY_GB_EACH
    wanted_gb = min(_ENOUGH_SHARED_MEMORY_GB, max(_LITTLE_SHARED_MEMORY_GB, loaders_gb))
    if free_gb >= wanted_gb:
        yield Finding(str(place), "fine", measured={"free_gb": free_gb})
        return
    advice = (
        f"give it {max(1, round(wanted_gb))} GB or more (docker run --shm-size, or mount -o remount,size=...): "
        "a full one kills loader processes with a bus error"
    )
    yield Finding(str(place), "warning", measured={"free_gb": free_gb}, advice=advice)


def check_open_files(subject: Subject) -> Iterator[Finding]:
    """How many files one process may hold open, against what a rank with its loader processes does."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        yield Finding("open files", "fine", "no limit")
        return
    wanted = max(_FILES_AT_LEAST, _FILES_EACH * (1 + subject.config.data.num_workers))
    found = f"{limit} for a process"
    if limit >= wanted:
        yield Finding("open files", "fine", found)
        return
    can = most == resource.RLIM_INFINITY or most >= wanted
    raising = f"ulimit -n {wanted} before the command"
    advice = raising if can else f"{raising}; the hard limit of {most} is raised in /etc/security/limits.conf"
    yield Finding("open files", "broken" if limit < _FILES_NEEDED else "warning", found, advice)


def _in_slurm(subject: Subject) -> bool:
    return subject.config.slurm.partition is not None or bool(subject.config.slurm.options)


def _quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or no limit: max
        return None


def _quota_of_version_1() -> float | None:
    try:
        quota = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        period = int((_CGROUP / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _free_gb(place: Path) -> float:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize / 1e9


def _try_to_write(place: Path) -> None:
    path = place / f"dist-trainer-doctor-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(
            descriptor, 0, 1 << 20
        )  # room that is not there is an error here, and no bus error
    finally:
        os.close(descriptor)
        path.unlink()


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
