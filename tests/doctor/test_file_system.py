"""The folder of runs on good disks and bad ones, and what is known of their kinds."""

import os
import subprocess
from pathlib import Path

import pytest

from dist_trainer.adapters.file_lock import hold
from dist_trainer.doctor.file_system import (
    check_clock,
    check_promises,
    check_room,
    is_locked,
    judge_clock,
)
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.mounts import Mount, check_kind, judge, mount_of
from tests.doctor.small_disks import mounted

TABLE = r"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /shared rw,relatime - nfs4 server:/export rw,soft,vers=4.2
41 40 0:51 / /shared/my\040runs rw - tmpfs none rw,size=4k
"""


def one(findings: object) -> Finding:
    (found,) = findings  # type: ignore[misc]
    assert isinstance(found, Finding)
    return found


def test_a_good_disk_keeps_every_promise_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    found = one(check_promises("run folder", tmp_path / "not" / "there" / "yet"))
    assert found.state == "fine"
    assert "exclusive create, fsync, rename, links, locks" in found.found
    assert one(check_clock("clock", tmp_path)).state == "fine"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_a_day_ago_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = (".doctor-0123456789abcdef", ".doctor-fedcba9876543210", ".doctor-notes", "run")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".doctor-aaaaaaaaaaaaaaaa").symlink_to(tmp_path / "run")
    for name in (names[0], *names[2:]):
        os.utime(tmp_path / name, (1.0, 1.0))
    os.utime(tmp_path / ".doctor-aaaaaaaaaaaaaaaa", (1.0, 1.0), follow_symlinks=False)
    assert one(check_clock("clock", tmp_path)).state == "fine"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == sorted([*names[1:], ".doctor-aaaaaaaaaaaaaaaa"])
    assert (tmp_path / "run" / "file").exists()


def test_a_full_disk_is_broken_and_says_to_make_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=64k") as disk:
        with (disk / "filling").open("wb") as stream, pytest.raises(OSError):
            while True:
                os.write(stream.fileno(), b"0" * 4096)
        found = list(check_promises("run folder", disk / "runs"))
        room = one(check_room("free space", disk / "runs"))
        assert [path.name for path in disk.iterdir()] == ["filling"]
    assert {each.state for each in found} == {"broken"}
    assert "no space left on device" in found[0].found
    assert "make room" in found[0].advice
    assert room.state == "broken"


def test_a_disk_without_room_for_more_files_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "few", "size=64m,nr_inodes=20") as disk:
        found = one(check_room("free space", disk))
    assert found.state == "broken"
    assert "files" in found.found


def test_a_read_only_disk_is_broken(tmp_path: Path) -> None:
    with mounted(tmp_path / "read-only", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        found = one(check_promises("run folder", disk / "runs"))
        kind = one(check_kind("file system", disk / "runs", many_nodes=False))
    assert (found.state, kind.state) == ("broken", "broken")
    assert "read-only file system" in found.found
    assert "--runs" in found.advice


def test_a_place_where_no_folder_can_be_made_is_broken() -> None:
    found = one(check_promises("run folder", Path("/proc/runs")))
    assert found.state == "broken"
    assert found.found == "/proc: no such file or directory"


def test_a_lock_that_somebody_holds_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, held=lambda owner: AssertionError(owner)):
        assert is_locked(path)
    assert not is_locked(path)


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0.0, "fine"), (-1.5, "fine"), (90.0, "warning"), (-90.0, "warning")]
)
def test_a_clock_that_is_off_is_a_warning(ahead_s: float, state: str) -> None:
    found = judge_clock("clock", ahead_s)
    assert found.state == state
    assert ("behind" in found.found) == (ahead_s < -2)
    assert found.measured["skew_s"] == abs(ahead_s)


def test_the_mount_of_a_folder_is_the_innermost() -> None:
    for folder, kind in (("/home/me", "ext4"), ("/shared/x", "nfs4"), ("/shared/my runs/y", "tmpfs")):
        mount = mount_of(Path(folder), TABLE)
        assert mount is not None
        assert mount.kind == kind


@pytest.mark.parametrize(
    ("kind", "options", "state", "word"),
    [
        ("ext4", "rw", "fine", ""),
        ("nfs4", "rw,hard", "fine", ""),
        ("nfs4", "rw,soft", "warning", "soft"),
        ("nfs", "rw,nolock", "warning", "locks"),
        ("nfs", "rw,local_lock=all", "warning", "locks"),
        ("lustre", "rw", "broken", "flock"),
        ("lustre", "rw,localflock", "warning", "one node"),
        ("lustre", "rw,flock", "fine", ""),
        ("tmpfs", "rw", "warning", "reboot"),
        ("fuse.s3fs", "rw", "warning", "object store"),
        ("xfs", "ro", "broken", "read-only"),
        ("proc", "rw", "broken", "no disk"),
    ],
)
def test_what_is_known_of_a_kind_of_file_system(kind: str, options: str, state: str, word: str) -> None:
    mount = Mount(kind, frozenset(options.split(",")), "none")
    found, words, advice = judge(mount, many_nodes=False)
    assert found == state
    assert word in words
    assert bool(advice) == (state != "fine")


def test_a_local_disk_is_no_place_for_the_runs_of_several_nodes() -> None:
    mount = Mount("ext4", frozenset({"rw"}), "/dev/sda1")
    assert judge(mount, many_nodes=False)[0] == "fine"
    assert judge(mount, many_nodes=True)[0] == "warning"
