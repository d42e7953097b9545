"""Cores, shared memory and open files, too few of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.machine import check_cores, check_shared_memory
from dist_trainer.doctor.subject import subject_of
from tests.doctor.small_disks import mounted

CORES = len(os.sched_getaffinity(0))
OPEN_FILES = """
import json
from pathlib import Path
from dist_trainer.doctor.machine import check_open_files
from dist_trainer.doctor.subject import subject_of
print(json.dumps([each.as_json() for each in check_open_files(subject_of([], Path("runs")))]))
"""


def cores(tmp_path: Path, *values: str) -> Finding:
    (found,) = check_cores(subject_of(["launch.device=cpu", *values], tmp_path))
    return found


def test_a_core_for_each_process_is_fine(tmp_path: Path) -> None:
    assert cores(tmp_path, "launch.workers_per_node=1").state == "fine"


def test_more_ranks_than_cores_is_a_warning_with_as_many_as_there_are(tmp_path: Path) -> None:
    found = cores(tmp_path, f"launch.workers_per_node={CORES + 1}", "data.global_batch_size=4096")
    assert found.state == "warning"
    assert f"launch.workers_per_node={CORES} " in found.advice


def test_loader_processes_count_as_well(tmp_path: Path) -> None:
    found = cores(tmp_path, "launch.workers_per_node=1", f"data.num_workers={CORES}")
    assert found.state == "warning"
    assert f"{CORES + 1} processes" in found.found
    assert f"data.num_workers={CORES - 1} " in found.advice


def test_little_shared_memory_is_a_warning_that_says_how_much_there_should_be(tmp_path: Path) -> None:
    subject = subject_of(["launch.workers_per_node=2", "data.num_workers=8"], tmp_path)
    with mounted(tmp_path / "shm", "size=64m") as place:
        (found,) = check_shared_memory(subject, place)
        assert not list(place.iterdir())
    assert found.state == "warning"
    assert "give it 4 GB" in found.advice


def test_full_shared_memory_is_broken_where_loader_processes_need_it(tmp_path: Path) -> None:
    with mounted(tmp_path / "shm", "size=64k") as place:
        (needed,) = check_shared_memory(subject_of(["data.num_workers=1"], tmp_path), place)
        (unneeded,) = check_shared_memory(subject_of([], tmp_path), place)
        assert not list(place.iterdir())
    assert (needed.state, unneeded.state) == ("broken", "warning")
    assert "no space" in needed.found


@pytest.mark.parametrize(("limit", "state"), [(64, "broken"), (512, "warning"), (4096, "fine")])
def test_a_low_limit_of_open_files_is_told_with_the_way_to_raise_it(
    limit: int, state: str, tmp_path: Path
) -> None:
    command = ["bash", "-c", f'ulimit -Sn {limit} && exec "$@"', "bash", sys.executable, "-c", OPEN_FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    (found,) = json.loads(done.stdout)
    assert found["state"] == state
    assert ("ulimit -n 1024" in found["advice"]) == (state != "fine")
