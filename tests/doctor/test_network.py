"""Interfaces by their names, as variables give them; the ranks over them are in test_command.py."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.adapters.interfaces import Interface, interfaces
from dist_trainer.doctor import network, ranks
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.network import Across, check_names
from dist_trainer.doctor.ranks import Meeting, Plan
from dist_trainer.doctor.subject import subject_of


def names(tmp_path: Path, *values: str) -> dict[str, Finding]:
    return {each.name: each for each in check_names(subject_of(values, tmp_path))}


@pytest.fixture(autouse=True)
def _nobody_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def test_lo_is_there_with_its_address() -> None:
    (lo,) = [each for each in interfaces() if each.name == "lo"]
    assert lo.address == "127.0.0.1"
    assert lo.is_loopback


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("GLOO_SOCKET_IFNAME", "lo", "fine"),
        ("GLOO_SOCKET_IFNAME", "nosuch0", "broken"),
        ("GLOO_SOCKET_IFNAME", "lo,nosuch0", "broken"),
        ("NCCL_SOCKET_IFNAME", "l", "fine"),  # NCCL takes beginnings
        ("NCCL_SOCKET_IFNAME", "=l", "broken"),
        ("NCCL_SOCKET_IFNAME", "^docker", "fine"),
        ("NCCL_SOCKET_IFNAME", "ib", "broken"),
    ],
)
def test_an_interface_that_is_not_there_is_broken(
    variable: str, value: str, state: str, tmp_path: Path
) -> None:
    found = names(tmp_path, f"launch.env={{{variable}: '{value}'}}")[variable]
    assert found.state == state
    assert ("lo" in found.advice) == (state == "broken")


def plan_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *values: str) -> Plan:
    """What would be tried on a machine with twelve interfaces."""
    names = ("lo", *(f"veth{number}" for number in range(10)), "ib0")
    there = [Interface(name, "10.0.0.1", name == "lo") for name in names]
    monkeypatch.setattr(network, "interfaces", lambda: there)
    plans: list[Plan] = []

    def run(plan: Plan) -> Iterator[Finding]:
        plans.append(plan)
        yield Finding("gloo on ib0", "warning")

    monkeypatch.setattr(network, "_run", run)
    others = Across(Meeting("n1", 1, 1, 2), names)
    (found,) = network.check_ranks(subject_of(values, tmp_path), lambda: others)
    assert found.state == ("broken" if values else "warning")  # it was asked for
    return plans[0]


def test_of_many_interfaces_the_one_that_was_named_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = plan_of(monkeypatch, tmp_path, "launch.env={GLOO_SOCKET_IFNAME: 'ib0,lo'}")
    assert plan.interfaces[:3] == ("lo", "ib0", "veth0") and len(plan.interfaces) == 8
    assert plan.common == ("lo", "ib0", "veth0", "veth1")
    assert plan_of(monkeypatch, tmp_path, "launch.env={NCCL_SOCKET_IFNAME: ib}").interfaces[0] == "ib0"
    assert "ib0" not in plan_of(monkeypatch, tmp_path).interfaces


def test_the_time_grows_with_what_is_tried(tmp_path: Path) -> None:
    few, many = (Plan(names, uses_gpus=False) for names in (("lo",), ("lo", "eth0")))
    assert many.within_s > few.within_s
    assert replace(few, uses_gpus=True).within_s > few.within_s
    assert replace(few, across=Meeting("n1", 1, 0, 2), common=("eth0",)).within_s > few.within_s
    subject = subject_of([], tmp_path)
    alone, among = (network.ranks_within_s(subject, meet_within_s=each) for each in (None, 60.0))
    assert among > alone + 60


@pytest.mark.timeout(30)
def test_what_takes_too_long_is_no_fault_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_IMPORT_S", -2.9)  # 0.1 s are left of it
    (found,) = network._run(Plan((), uses_gpus=False))
    assert (found.name, found.state, found.found) == ("torch", "broken", "not imported within 0.1 s")
    assert "reinstall" not in found.advice
    assert network._late(30.0, "gloo on lo").found == "nothing more within 30 s after gloo on lo"


def test_the_shell_s_own_variable_counts_where_the_configuration_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert names(tmp_path)["GLOO_SOCKET_IFNAME"].state == "broken"
    assert names(tmp_path, "launch.env={GLOO_SOCKET_IFNAME: lo}")["GLOO_SOCKET_IFNAME"].state == "fine"
