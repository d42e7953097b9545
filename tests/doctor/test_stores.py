"""Stores for checkpoints that are not there, or may not be written to."""

from pathlib import Path

import pytest

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.stores import check_store
from dist_trainer.doctor.subject import subject_of
from tests.doctor.small_disks import mounted
from tests.object_store import bucket, s3_endpoint, stop_fsspec_threads  # noqa: F401


def look(tmp_path: Path, folder: str) -> Finding:
    (found,) = check_store(subject_of([f"checkpoint.folder={folder}"], tmp_path / "runs"))
    return found


def test_checkpoints_in_the_run_folder_need_no_check_of_their_own(tmp_path: Path) -> None:
    assert look(tmp_path, "null").found == "in the run folder"


def test_a_bucket_that_is_there_is_fine_and_one_that_is_not_is_broken(bucket: str, tmp_path: Path) -> None:  # noqa: F811
    try:
        good, bad = look(tmp_path, f"{bucket}/runs"), look(tmp_path, "s3://nobody-has-made-this/runs")
    finally:
        stop_fsspec_threads()
    assert good.state == "fine"
    assert bad.state == "broken"
    assert "s3://nobody-has-made-this/runs" in bad.found
    assert ".probe" not in bad.found
    assert "make the bucket" in bad.advice


def test_a_local_folder_may_be_missing_and_is_not_made(tmp_path: Path) -> None:
    assert look(tmp_path, str(tmp_path / "a" / "b")).state == "fine"
    assert not (tmp_path / "a").exists()


def test_a_full_folder_is_broken(tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=4k,nr_inodes=2") as disk:
        (disk / "one").touch()
        found = look(tmp_path, str(disk))
    assert found.state == "broken"
    assert "checkpoint.folder" in found.advice


def test_a_store_of_no_known_kind_is_broken(tmp_path: Path) -> None:
    found = look(tmp_path, "nosuch://bucket/a")
    assert found.state == "broken"
    assert "nosuch" in found.found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
