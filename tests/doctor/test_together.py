"""What nodes try with each other, as two threads with one folder; tests/cluster/test_doctor.py has real nodes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.doctor import shared_folder, together
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.shared_folder import Here, Ping, arrived, read
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


def test_a_file_that_the_others_see_late_is_a_warning_and_the_rest_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "_LATE_S", 0.1)
    monkeypatch.setattr(together, "_ENOUGH_S", 0.1)
    at_once, asked = Nodes._newer, list[int]()

    def late(node: Nodes, number: int) -> Ping | None:
        asked.append(number)
        ping = at_once(node, number)
        time.sleep(0.3 if ping else 0.0)
        return ping

    monkeypatch.setattr(Nodes, "_newer", late)
    first, _ = both(findings, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert [each.state for each in first] == ["warning", "fine", "fine"]
    assert first[0].measured["seen_after_s"] > 0.1
    assert max(asked) == 1  # once told enough: the next number said that there are no more


def test_a_file_that_the_others_never_see_is_broken_and_what_they_say_no_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_ANSWER_WITHIN_S", "_RACE_WITHIN_S"):
        monkeypatch.setattr(together, name, 0.3)

    def act(node: Nodes) -> list[Finding]:
        node.arrive()
        return list(node.check_files()) if node.rank == 0 else []  # the second one never answers

    first, _ = both(act, nodes(tmp_path, tmp_path))
    assert isinstance(first, list)
    assert (first[0].name, first[0].state) == ("shared files", "broken")
    assert "not seen by n1" in first[0].found
    assert "actimeo" in first[0].advice
    assert [(each.name, each.state) for each in first[1:]] == [
        ("shared locks", "skipped"),
        ("shared creates", "warning"),
    ]
    assert "not heard from n1" in first[2].found


def test_what_is_not_there_yet_is_not_asked_for_nor_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reading(kind: type[Here], path: Path) -> Here | None:
        asked.append(path.name)
        return read(kind, path)

    monkeypatch.setattr(shared_folder, "read", reading)
    first, second, _ = nodes(tmp_path, tmp_path, tmp_path)
    first.arrive()
    found = arrived(tmp_path, 3)
    second.arrive()
    assert [each.node for each in arrived(tmp_path, 3, found).values()] == ["n0", "n1"]
    assert asked == ["here-0.json", "here-1.json"]


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
