"""What nodes try with each other, as two threads with one folder; tests/cluster/test_doctor.py has real nodes."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor import together
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.together import Nodes
from dist_trainer.errors import DistTrainerError

pytestmark = pytest.mark.timeout(60)


def nodes(*folders: Path) -> list[Nodes]:
    jobs = [SlurmJob("7", 0, f"n{rank}", rank, len(folders), "", step="7.0") for rank in range(len(folders))]
    return [Nodes(folder, job) for folder, job in zip(folders, jobs, strict=True)]


def both(act: Callable[[Nodes], object], group: list[Nodes]) -> list[object]:
    """What each gets, at the same time; an error too."""
    found: dict[int, object] = {}

    def run(node: Nodes) -> None:
        try:
            found[node.rank] = act(node)
        except DistTrainerError as error:
            found[node.rank] = error

    threads = [threading.Thread(target=run, args=(node,)) for node in group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in sorted(found)]


def findings(node: Nodes) -> list[Finding]:
    node.arrive()
    return list(node.check_files())


def test_what_holds_on_one_disk_is_told_by_the_first_node(tmp_path: Path) -> None:
    first, second = both(findings, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert [(each.name, each.state) for each in first] == [
        ("shared files", "fine"),
        ("shared locks", "fine"),
        ("shared creates", "fine"),
    ]
    assert second == []


def test_nodes_that_do_not_see_each_other_say_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "ARRIVE_WITHIN_S", 0.3)
    folders = [tmp_path / "one", tmp_path / "another"]
    for folder in folders:
        folder.mkdir()
    for rank, found in enumerate(both(findings, nodes(*folders))):
        assert isinstance(found, DistTrainerError)
        assert f"of 2 nodes only n{rank} can be seen" in str(found)


def test_a_file_that_the_others_see_late_or_never_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "_SEEN_WITHIN_S", 0.3)

    def act(node: Nodes) -> list[Finding]:
        node.arrive()
        return list(node.check_files()) if node.rank == 0 else []  # the second one never answers

    first, _ = both(act, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert (first[0].name, first[0].state) == ("shared files", "broken")
    assert "not seen by n1" in first[0].found
    assert "actimeo" in first[0].advice


def test_one_file_with_two_creators_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "create_exclusively", lambda path, content: True)
    first, _ = both(findings, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert (first[-1].name, first[-1].state) == ("shared creates", "broken")


def test_a_lock_that_holds_on_one_node_alone_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "is_locked", lambda path: False)
    first, _ = both(findings, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert {each.name: each.state for each in first}["shared locks"] == "broken"


def test_the_loopback_interface_counts_only_where_all_nodes_are_one_machine(tmp_path: Path) -> None:
    def act(node: Nodes) -> tuple[str, ...] | None:
        node.arrive()
        found = node.across(lambda address: (1234, 7))
        return found.interfaces if found else None

    first, second = both(act, nodes(tmp_path, tmp_path))
    assert first == second
    assert isinstance(first, tuple)
    assert first[0] == "lo"
