"""Which file system a folder is on, and what is known of its kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.doctor.findings import Finding, State

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = {"ext4", "ext3", "ext2", "xfs", "btrfs", "zfs", "f2fs", "bcachefs"}
_NO_DISK = {"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2"}
_SHARED = {
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "wekafs",
    "cifs",
    "smb3",
    "9p",
    "virtiofs",
    "afs",
}


@dataclass(frozen=True)
class Mount:
    """One line of proc_pid_mountinfo(5)."""

    kind: str
    options: frozenset[str]
    source: str

    @property
    def is_shared(self) -> bool:
        """Whether other machines may have it too."""
        return self.kind in _SHARED or self.kind.startswith("fuse.")


def mount_of(folder: Path, table: str | None = None) -> Mount | None:
    """The mount that the folder is on, the last where one covers another; None where nobody says."""
    try:
        text = _MOUNTS.read_text() if table is None else table
    except OSError:
        return None
    best: tuple[int, Mount] | None = None
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, facts = before.split(), after.split()
        if not dash or len(fields) < 6 or len(facts) < 3:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))  # a space is \040 there
        if folder.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            options = frozenset([*fields[5].split(","), *facts[2].split(",")])
            best = len(point.parts), Mount(facts[0], options, facts[1])
    return best[1] if best else None


def check_kind(name: str, folder: Path, *, many_nodes: bool) -> Iterator[Finding]:
    """What is known of the file system's kind, and of how it is mounted."""
    mount = mount_of(folder.resolve())
    if mount is None:
        yield Finding(name, "skipped", "no file system is known for it")
        return
    state, found, advice = judge(mount, many_nodes=many_nodes)
    yield Finding(name, state, f"{mount.kind}{found}", advice)


def judge(mount: Mount, *, many_nodes: bool) -> tuple[State, str, str]:
    """How good it is for runs: the state, words to follow its kind, and what to do."""
    kind, options = mount.kind, mount.options
    if kind in _NO_DISK:
        return "broken", ", no disk", "choose another place with --runs"
    if "ro" in options:
        return "broken", ", mounted read-only", "choose another place with --runs"
    if kind.startswith("nfs") and "soft" in options:
        advice = "mount it hard: soft gives errors, and torn files, as soon as the server is slow"
        return "warning", ", mounted soft", advice
    if kind.startswith("nfs") and ("nolock" in options or _has(options, "local_lock=", "all", "flock")):
        advice = "mount it without nolock and local_lock: two nodes could train one run at once"
        return "warning", ", locks hold on one node only", advice
    if kind == "lustre" and not {"flock", "localflock"} & options:
        return (
            "broken",
            ", mounted without flock",
            "mount it with -o flock, or choose another place with --runs",
        )
    if kind == "lustre" and "localflock" in options:
        return "warning", ", locks hold on one node only", "mount it with -o flock"
    if kind in ("tmpfs", "ramfs"):
        return "warning", ", gone after a reboot", "choose a disk with --runs, for a run that is to survive"
    if kind.startswith("fuse.") and any(word in kind for word in ("s3", "gcs", "goofys", "rclone", "blob")):
        advice = "choose a disk with --runs, and give the store itself to checkpoint.folder"
        return "warning", ", an object store that plays a file system", advice
    if many_nodes and kind in (*_LOCAL, "overlay"):
        return "warning", ", on this machine alone", "with several nodes choose a shared place with --runs"
    return "fine", "", ""


def _has(options: frozenset[str], key: str, *values: str) -> bool:
    return any(f"{key}{value}" in options for value in values)
