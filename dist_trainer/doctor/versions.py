"""Whether the installed packages fit this one and each other: what they ask for, against what is there."""

import platform
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.subject import Subject

OURS = "dist-trainer"
_SHOWN = ("torch", "torchvision", "numpy", "mlflow", "submitit", "fsspec", "safetensors")
_SHOWN_FOR_S3 = ("s3fs", "aiobotocore")
_TORCHVISION_BEHIND = 15  # torch 2.n goes with torchvision 0.(n + 15): 2.0 with 0.15


@dataclass(frozen=True)
class Package:
    """One that is installed, with what it needs."""

    name: str
    version: str
    requires: tuple[str, ...]
    requires_python: str


class Installed:
    """What is installed; the files that say so are long, so each is read once."""

    def __init__(self) -> None:
        self._known: dict[str, Package | None] = {}

    def find(self, name: str) -> Package | None:
        """The package; None where there is none of the name."""
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    @staticmethod
    def _read(name: str) -> Package | None:
        try:
            facts = metadata(name)
        except PackageNotFoundError:
            return None
        requires = tuple(facts.get_all("Requires-Dist") or ())
        python = "".join(facts.get_all("Requires-Python") or ())
        return Package(facts["Name"], facts["Version"], requires, python)


def check_python() -> Iterator[Finding]:
    """Python itself and the C library below it."""
    wanted = _python_wanted(Installed().find(OURS))
    version, libc = platform.python_version(), " ".join(platform.libc_ver())
    found = f"{version}, {libc}, Linux {platform.release()}"
    if wanted is not None and not wanted.contains(version, prereleases=True):
        yield Finding("python", "broken", found, f"{OURS} needs Python {wanted}: make a new environment")
        return
    yield Finding("python", "fine", found)


def check_packages(subject: Subject) -> Iterator[Finding]:
    """Ours, and whatever those need in turn."""
    installed = Installed()
    if (ours := installed.find(OURS)) is None:
        yield Finding(
            "packages",
            "warning",
            f"{OURS} is not installed, only imported from {sys.path[0] or 'here'}: nobody says what it needs",
            "pip install .",
        )
        return
    extras = {"", "s3"} if is_s3(subject) else {""}
    problems = [*_problems(installed, ours, extras), *_vision_problem(installed)]
    yield from problems
    names = (*_SHOWN, *(_SHOWN_FOR_S3 if is_s3(subject) else ()))
    there = [f"{name} {each.version}" for name in names if (each := installed.find(name)) is not None]
    if not problems:
        yield Finding("packages", "fine", ", ".join(there))


def is_s3(subject: Subject) -> bool:
    """Whether checkpoints go to S3."""
    return (subject.config.checkpoint.folder or "").startswith(("s3://", "s3a://"))


def _problems(installed: Installed, ours: Package, extras: set[str]) -> Iterator[Finding]:
    """A walk over everything that is needed, each package once; what is optional there is not asked for."""
    waiting: deque[tuple[Package, set[str]]] = deque([(ours, extras)])
    seen, told = {OURS}, set[tuple[str, str]]()
    while waiting:
        by, its_extras = waiting.popleft()
        for wanted in _requirements(by, its_extras):
            found = installed.find(wanted.name)
            if not _fits(found, wanted) and (wanted.name, str(wanted.specifier)) not in told:
                told.add((wanted.name, str(wanted.specifier)))
                yield _misfit(by, found, wanted, is_ours=by is ours)
            if found is not None and wanted.name not in seen:
                seen.add(wanted.name)
                waiting.append((found, {"", *wanted.extras}))


def _requirements(by: Package, extras: set[str]) -> Iterator[Requirement]:
    for text in by.requires:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            yield wanted


def _fits(found: Package | None, wanted: Requirement) -> bool:
    try:
        return found is not None and wanted.specifier.contains(found.version, prereleases=True)
    except InvalidVersion:
        return True


def _misfit(by: Package, found: Package | None, wanted: Requirement, *, is_ours: bool) -> Finding:
    needs = f"{wanted.name}{wanted.specifier}"
    there = f"{wanted.name} {found.version}" if found else f"{wanted.name} is not installed"
    words = f"{there}; {by.name} {by.version} needs {needs}"
    return Finding("packages", "broken" if is_ours else "warning", words, f"pip install '{needs}'")


def _vision_problem(installed: Installed) -> Iterator[Finding]:
    """torchvision's operators are compiled against one minor version of torch, which its metadata do not say."""
    torch, vision = installed.find("torch"), installed.find("torchvision")
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


def _python_wanted(ours: Package | None) -> SpecifierSet | None:
    try:
        return SpecifierSet(ours.requires_python) if ours is not None else None
    except InvalidSpecifier:
        return None
