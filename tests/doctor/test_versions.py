"""Packages that are missing, too old, or made for another torch: by what a real environment would say of them."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.node import installed_versions
from dist_trainer.doctor.subject import Subject, subject_of
from dist_trainer.doctor.versions import check_packages, check_python


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return subject_of([], tmp_path)


def pretend(folder: Path, name: str, number: str, *requires: str) -> None:
    """An installed package as pip leaves it, in front of the real one."""
    place = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    place.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    place.joinpath("METADATA").write_text("\n".join(lines) + "\n")


def broken(findings: Iterator[Finding]) -> list[Finding]:
    return [each for each in findings if each.state == "broken"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_this_environment_has_no_broken_packages(subject: Subject) -> None:
    found = list(check_packages(subject))
    assert not broken(iter(found)), found
    assert [each.state for each in check_python()] == ["fine"]


def test_a_package_that_is_too_old_is_broken_with_the_command_that_mends_it(
    subject: Subject, site: Path
) -> None:
    pretend(site, "numpy", "1.26.4")
    (found, *_) = broken(check_packages(subject))
    assert found.found == f"numpy 1.26.4; dist-trainer {version('dist-trainer')} needs numpy>=2"
    assert found.advice == "pip install 'numpy>=2'"


def test_a_package_that_is_missing_is_broken(subject: Subject, site: Path) -> None:
    pretend(site, "dist-trainer", "9.9", "torch>=2", "no-such-package>=3")
    assert [each.found for each in broken(check_packages(subject))] == [
        "no-such-package is not installed; dist-trainer 9.9 needs no-such-package>=3"
    ]


def test_what_only_another_system_needs_is_not_asked_for(subject: Subject, site: Path) -> None:
    markers = ('no-such-package; sys_platform == "win32"', 'another; extra == "onnx"')
    pretend(site, "dist-trainer", "9.9", *markers)
    assert not broken(check_packages(subject))


def test_s3fs_is_needed_where_checkpoints_go_to_s3_alone(tmp_path: Path, site: Path) -> None:
    pretend(site, "dist-trainer", "9.9", 's3fs>=9999; extra == "s3"')
    assert not broken(check_packages(subject_of([], tmp_path)))
    (found,) = broken(check_packages(subject_of(["checkpoint.folder=s3://bucket/a"], tmp_path)))
    assert "s3fs>=9999" in found.advice


def test_what_others_need_is_a_warning(subject: Subject, site: Path) -> None:
    pretend(site, "dist-trainer", "9.9", "middle")
    pretend(site, "middle", "1.0", "numpy<1")
    found = [each for each in check_packages(subject) if each.state == "warning"]
    assert [each.advice for each in found] == ["pip install 'numpy<1'"]


def test_what_an_interrupted_pip_left_has_no_name_and_is_no_package(site: Path) -> None:
    (site / "~umpy-1.26.4.dist-info").mkdir()
    pretend(site, "some-package", "1.2")
    found = installed_versions()
    assert found["some-package"] == "1.2"
    assert found["torch"] == version("torch")
    assert all(isinstance(text, str) for each in found.items() for text in each)


def test_a_torchvision_of_another_torch_is_broken(subject: Subject, site: Path) -> None:
    pretend(site, "torch", "2.14.0")
    pretend(site, "torchvision", "0.28.0")
    found = broken(check_packages(subject))
    assert any(each.advice == "pip install 'torchvision==0.29.*'" for each in found)
