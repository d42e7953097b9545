"""Whether the installed packages fit this one and each other: what they ask for, against what is there."""

import platform
import re
import sys
from collections import deque
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.subject import Subject

OURS = "dist-trainer"
_SHOWN = ("torch", "torchvision", "numpy", "mlflow", "submitit", "fsspec", "safetensors")
_SHOWN_FOR_S3 = ("s3fs", "aiobotocore")
_TORCHVISION_BEHIND = 15  # torch 2.n goes with torchvision 0.(n + 15): 2.0 with 0.15


def check_python() -> Iterator[Finding]:
    """Python itself and the C library below it."""
    wanted = _python_wanted()
    version, libc = platform.python_version(), " ".join(platform.libc_ver())
    found = f"{version}, {libc}, Linux {platform.release()}"
    if wanted is not None and not wanted.contains(version, prereleases=True):
        yield Finding("python", "broken", found, f"{OURS} needs Python {wanted}: make a new environment")
        return
    yield Finding("python", "fine", found)


def check_packages(subject: Subject) -> Iterator[Finding]:
    """Ours, and whatever those need in turn."""
    if (ours := _installed(OURS)) is None:
        yield Finding(
            "packages",
            "warning",
            f"{OURS} is not installed, only imported from {sys.path[0] or 'here'}: nobody says what it needs",
            "pip install .",
        )
        return
    extras = {"", "s3"} if is_s3(subject) else {""}
    problems = [*_problems(ours, extras), *_vision_problem()]
    yield from problems
    names = (*_SHOWN, *(_SHOWN_FOR_S3 if is_s3(subject) else ()))
    there = [f"{name} {each.version}" for name in names if (each := _installed(name)) is not None]
    if not problems:
        yield Finding("packages", "fine", ", ".join(there))


def is_s3(subject: Subject) -> bool:
    """Whether checkpoints go to S3."""
    return (subject.config.checkpoint.folder or "").startswith(("s3://", "s3a://"))


def _problems(ours: Distribution, extras: set[str]) -> Iterator[Finding]:
    """A walk over everything that is needed, each package once; what is optional there is not asked for."""
    waiting: deque[tuple[Distribution, set[str]]] = deque([(ours, extras)])
    seen, told = {OURS}, set[tuple[str, str]]()
    while waiting:
        by, its_extras = waiting.popleft()
        for wanted in _requirements(by, its_extras):
            found = _installed(wanted.name)
            if not _fits(found, wanted) and (wanted.name, str(wanted.specifier)) not in told:
                told.add((wanted.name, str(wanted.specifier)))
                yield _misfit(by, found, wanted, is_ours=by is ours)
            if found is not None and wanted.name not in seen:
                seen.add(wanted.name)
                waiting.append((found, {"", *wanted.extras}))


def _requirements(by: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for text in by.requires or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            yield wanted


def _fits(found: Distribution | None, wanted: Requirement) -> bool:
    try:
        return found is not None and wanted.specifier.contains(found.version, prereleases=True)
    except InvalidVersion:
        return True


def _misfit(by: Distribution, found: Distribution | None, wanted: Requirement, *, is_ours: bool) -> Finding:
    needs = f"{wanted.name}{wanted.specifier}"
    there = f"{wanted.name} {found.version}" if found else f"{wanted.name} is not installed"
    words = f"{there}; {by.metadata['Name']} {by.version} needs {needs}"
    return Finding("packages", "broken" if is_ours else "warning", words, f"pip install '{needs}'")


def _vision_problem() -> Iterator[Finding]:
    """torchvision's operators are compiled against one minor version of torch, which its metadata do not say."""
    torch, vision = _installed("torch"), _installed("torchvision")
    if torch is None or vision is None:
        return
    try:
        torch_version, vision_version = Version(torch.version), Version(vision.version)
    except InvalidVersion:
        return
    expected = torch_version.minor + _TORCHVISION_BEHIND
    if torch_version.major != 2 or (vision_version.major, vision_version.minor) == (0, expected):
        return
    words = f"torchvision {vision.version} was made for another torch than {torch.version}"
    yield Finding("packages", "broken", words, f"pip install 'torchvision==0.{expected}.*'")


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _python_wanted() -> SpecifierSet | None:
    ours = _installed(OURS)
    text = ours.metadata["Requires-Python"] if ours is not None else None
    try:
        return SpecifierSet(text) if text and re.search(r"\d", text) else None
    except InvalidSpecifier:
        return None
