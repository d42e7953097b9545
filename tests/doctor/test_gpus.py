"""GPUs that torch cannot use, by what it and the driver say; a machine with real ones is rarely at hand."""

from pathlib import Path

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.gpus import driver_version, judge_cuda

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12\n"


def judge(
    gpus: int, *, wanted: bool = True, cuda: str | None = "13.0", driver: str | None = "590.1"
) -> Finding:
    return judge_cuda(gpus, is_wanted=wanted, build="2.14.1", cuda=cuda, driver=driver)


def test_gpus_that_are_seen_are_fine() -> None:
    found = judge(8)
    assert (found.state, found.found) == ("fine", "8 GPUs, driver 590.1, torch is built for CUDA 13.0")


def test_none_that_nobody_wants_is_no_trouble() -> None:
    assert judge(0, wanted=False, driver=None).state == "skipped"


def test_a_build_for_the_cpu_alone_is_broken_where_there_are_gpus() -> None:
    found = judge(0, cuda=None)
    assert found.state == "broken"
    assert "build for CUDA" in found.advice


def test_a_driver_that_is_too_old_is_told_with_the_one_that_is_needed() -> None:
    assert "needs driver 580 or newer" in judge(0, driver="550.54.15").advice
    assert "nvidia-smi" in judge(0, driver="580.65").advice
    assert "nvidia-smi" in judge(0, cuda="99.0", driver="550.54.15").advice


def test_the_driver_s_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert driver_version(path) is None
    path.write_text(NVRM)
    assert driver_version(path) == "550.54.15"
