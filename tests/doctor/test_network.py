"""Interfaces by their names, as variables give them; the ranks over them are in test_command.py."""

from pathlib import Path

import pytest

from dist_trainer.adapters.interfaces import interfaces
from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.network import check_names
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


def test_the_shell_s_own_variable_counts_where_the_configuration_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert names(tmp_path)["GLOO_SOCKET_IFNAME"].state == "broken"
    assert names(tmp_path, "launch.env={GLOO_SOCKET_IFNAME: lo}")["GLOO_SOCKET_IFNAME"].state == "fine"
