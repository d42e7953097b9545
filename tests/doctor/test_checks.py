"""Checks side by side: each has its time, and nothing that one does hides what the others find."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.doctor.checks import Check, let_checks_end, run_checks
from dist_trainer.doctor.file_system import scratch
from dist_trainer.doctor.findings import Finding, exit_code, with_measured


def good() -> Iterator[Finding]:
    yield Finding("good", "fine")


def raising() -> Iterator[Finding]:
    yield Finding("half", "fine")
    raise ValueError("the disk is on fire\nin many lines")


@pytest.mark.timeout(20)
def test_a_check_that_hangs_is_a_finding_and_what_it_said_before_is_kept() -> None:
    released = threading.Event()

    def hanging() -> Iterator[Finding]:
        yield Finding("first half", "fine")
        released.wait()

    try:
        found = run_checks([Check("slow", hanging, within_s=0.3, advice="unplug it"), Check("good", good)])
    finally:
        released.set()
    assert [(each.name, each.state) for each in found] == [
        ("first half", "fine"),
        ("slow", "broken"),
        ("good", "fine"),
    ]
    assert found[1].found == "no answer within 0.3 s"
    assert found[1].advice == "unplug it"


@pytest.mark.timeout(20)
def test_a_check_that_is_late_may_still_remove_what_it_made(tmp_path: Path) -> None:
    inside, released = threading.Event(), threading.Event()

    def late() -> Iterator[Finding]:
        with scratch(tmp_path):
            inside.set()
            released.wait()
        return iter(())

    run_checks([Check("late", late, within_s=0.0)])
    assert inside.wait(10)
    threading.Timer(0.1, released.set).start()
    let_checks_end(10.0)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_raises_is_a_finding_of_one_line() -> None:
    half, broken, _ = run_checks([Check("bad", raising), Check("good", good)])
    assert half.state == "fine"
    assert (broken.name, broken.state, broken.found) == ("bad", "broken", "ValueError: the disk is on fire")


def test_a_password_in_what_was_found_is_not_shown() -> None:
    def telling() -> Iterator[Finding]:
        yield Finding("MLflow", "warning", "http://me:correct-horse@example.org does not answer")

    (found,) = run_checks([Check("MLflow", telling)])
    assert "correct-horse" not in found.found


def test_only_what_is_broken_ends_with_1() -> None:
    assert exit_code([]) == 0
    assert exit_code([Finding("a", "warning"), Finding("b", "skipped")]) == 0
    assert exit_code([Finding("a", "broken"), Finding("b", "fine")]) == 1


def test_measurements_of_several_nodes_become_ranges() -> None:
    measured = [{"latency_us": 61.7, "bandwidth_gb_s": 1.234}, {"latency_us": 80.2, "bandwidth_gb_s": 1.234}]
    assert with_measured("gloo", measured) == "gloo, 62 to 80 us, 1.2 GB/s"
