"""Whether a folder's file system keeps the promises that a run's files and commits need, by trying each of them."""

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from dist_trainer.adapters.file_lock import hold
from dist_trainer.adapters.files import (
    append_line,
    create_exclusively,
    make_private_folder,
    open_private,
    replace_file,
)
from dist_trainer.adapters.local_folder import LocalFolder
from dist_trainer.doctor.findings import Finding, State
from dist_trainer.errors import DistTrainerError

_LITTLE_GB, _TOO_LITTLE_GB = 5.0, 0.1
_FEW_FILES, _TOO_FEW_FILES = 10_000, 100
_SLOW_FSYNC_MS, _FSYNCS = 500.0, 5
_SKEW_S = 2.0
_ELSEWHERE = "choose another place with --runs"
PREFIX = ".doctor-"
_OWN = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{16}}")
_FORGOTTEN_AFTER_S = 86_400.0  # longer than anybody waits for a job's nodes


def check_promises(name: str, folder: Path) -> Iterator[Finding]:
    """Each promise by itself, in a folder of its own that is gone afterwards."""
    place = nearest(folder)
    try:
        with scratch(place) as own:
            yield from _promises(name, own)
    except (OSError, DistTrainerError) as error:
        yield Finding(name, "broken", f"{place}: {words_of(error)}", _what_to_do(error))


def _promises(name: str, own: Path) -> Iterator[Finding]:
    problems: list[Finding] = []
    for promise, keeps in _PROMISES.items():
        try:
            problem = keeps(own)
        except (OSError, DistTrainerError) as error:
            problem = words_of(error)
            advice = _what_to_do(error)
        else:
            advice = _ELSEWHERE
        if problem:
            problems.append(Finding(name, "broken", f"{promise}: {problem}", advice))
    yield from problems
    if problems:
        return
    fsync_ms = _fsync_ms(own)
    kept = f"keeps its promises: {', '.join(_PROMISES)}"
    if fsync_ms > _SLOW_FSYNC_MS:
        advice = "each save waits for a few of them; a busy or slow disk: look at it, or choose another with --runs"
        yield Finding(name, "warning", kept, advice, {"fsync_ms": fsync_ms})
    else:
        yield Finding(name, "fine", kept, measured={"fsync_ms": fsync_ms})


def _fsync_ms(own: Path) -> float:
    """The median of a few small files, each synced as those of a run are."""
    times_ms = []
    for number in range(_FSYNCS):
        began = time.perf_counter()
        replace_file(own / f"synced-{number}", b"0" * 4096)
        times_ms.append((time.perf_counter() - began) * 1e3)
    return median(times_ms)


def _creates_exclusively(own: Path) -> str:
    both = [create_exclusively(own / "one.json", {"by": number}) for number in range(2)]
    return "" if both == [True, False] else "two of two created the same file"


def _writes_to_disk(own: Path) -> str:
    append_line(own / "lines.jsonl", {"number": 1})
    append_line(own / "lines.jsonl", {"number": 2})
    found = (own / "lines.jsonl").read_text()
    return "" if found == '{"number": 1}\n{"number": 2}\n' else f"read back as {found!r}"


def _replaces_whole(own: Path) -> str:
    path = own / "replaced"
    for content in (b"old", b"new"):
        replace_file(path, content)
    left = [each.name for each in own.iterdir() if each.name.startswith(".replaced")]
    return "" if path.read_bytes() == b"new" and not left else "the old file is still there"


def _links(own: Path) -> str:
    """What stands in for hard links is checked by exclusive creation; here they are only to be no lie."""
    (own / "linked").write_bytes(b"linked")
    try:
        os.link(own / "linked", own / "link")
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            return ""
        raise
    return "" if (own / "linked").stat().st_nlink == 2 else "a link does not count"


def _locks(own: Path) -> str:
    path = own / "lock"
    with hold(path, held=lambda owner: DistTrainerError(f"held by {owner}")):
        return "" if is_locked(path) else "a locked file could be locked again"


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock: another open file of the same process counts too."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


_PROMISES: dict[str, Callable[[Path], str]] = {
    "exclusive create": _creates_exclusively,
    "fsync": _writes_to_disk,
    "rename": _replaces_whole,
    "links": _links,
    "locks": _locks,
}


def check_room(name: str, folder: Path) -> Iterator[Finding]:
    """How much can be written there yet: bytes and files."""
    found = os.statvfs(nearest(folder))
    free_gb = found.f_bavail * found.f_frsize / 1e9
    measured = {"free_gb": free_gb}
    if found.f_files and found.f_favail < _FEW_FILES:
        state: State = "broken" if found.f_favail < _TOO_FEW_FILES else "warning"
        advice = "remove files that nobody needs: every file takes one, however small it is"
        yield Finding(name, state, f"room for {found.f_favail} files", advice, measured)
    elif free_gb < _LITTLE_GB:
        advice = "make room: checkpoint.keep_last + 1 checkpoints of model and optimizer are there at a time"
        yield Finding(name, "broken" if free_gb < _TOO_LITTLE_GB else "warning", "", advice, measured)
    else:
        yield Finding(name, "fine", measured=measured)


def check_clock(name: str, folder: Path) -> Iterator[Finding]:
    """This machine's clock against that of the file system: heartbeats and ages are read by both."""
    try:
        with scratch(nearest(folder)) as own:
            yield judge_clock(name, clock_ahead_s(own))
    except (OSError, DistTrainerError):
        yield Finding(name, "skipped", "nothing can be written there to read its clock by")


def judge_clock(name: str, ahead_s: float) -> Finding:
    """By how much this machine's clock is ahead of another."""
    measured = {"skew_s": round(abs(ahead_s), 2)}
    if abs(ahead_s) <= _SKEW_S:
        return Finding(name, "fine", measured=measured)
    words = f"this machine is {'ahead' if ahead_s > 0 else 'behind'}"
    advice = (
        "set the clocks by NTP (chronyc tracking): ages of heartbeats, jobs and locks are wrong by that much"
    )
    return Finding(name, "warning", words, advice, measured)


def clock_ahead_s(own: Path) -> float:
    """Ours minus the file system's; 0 where the difference is less than asking took."""
    path = own / f"clock-{secrets.token_hex(4)}"
    before = time.time()
    create_exclusively(path, {})
    after, theirs = time.time(), path.stat().st_mtime
    return min(0.0, after - theirs) + max(0.0, before - theirs)


def nearest(folder: Path) -> Path:
    """The folder, or of those above it the first that is there: a run makes what is missing."""
    return next(path for path in (folder, *folder.parents) if path.exists())


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A folder for a moment; nothing of it stays, nor of those that who was killed could not remove."""
    _remove_forgotten(place)
    own = place / f"{PREFIX}{secrets.token_hex(8)}"
    make_private_folder(own)
    try:
        yield own
    finally:
        LocalFolder(place).delete_folder(own.name)


def _remove_forgotten(place: Path) -> None:
    """Folders of our own name and user that nobody has changed for a day."""
    with suppress(OSError), os.scandir(place) as entries:
        names = [entry.name for entry in entries if _OWN.fullmatch(entry.name) and _is_forgotten(entry)]
        for name in names:
            with suppress(OSError):
                LocalFolder(place).delete_folder(name)


def _is_forgotten(entry: "os.DirEntry[str]") -> bool:
    found = entry.stat(follow_symlinks=False)
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return is_ours and time.time() - found.st_mtime > _FORGOTTEN_AFTER_S


def words_of(error: OSError | DistTrainerError) -> str:
    """The kernel's word alone; ours as they are."""
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)


def _what_to_do(error: OSError | DistTrainerError) -> str:
    code = error.errno if isinstance(error, OSError) else None
    advice = {
        errno.ENOSPC: f"make room there, or {_ELSEWHERE}",
        errno.EDQUOT: f"your quota is used up: remove files of yours, or {_ELSEWHERE}",
        errno.EROFS: f"it is mounted read-only: {_ELSEWHERE}",
        errno.EACCES: f"you may not write there: {_ELSEWHERE}",
        errno.ENOLCK: f"mount it with locks (NFS without nolock, Lustre with -o flock), or {_ELSEWHERE}",
        errno.ENOSYS: f"mount it with locks (Lustre with -o flock), or {_ELSEWHERE}",
    }
    return advice.get(code or 0, _ELSEWHERE)
