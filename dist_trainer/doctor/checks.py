"""Many checks at once, each within its own time: one that raises, or never ends, is a finding itself."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dist_trainer.config.redact import redact
from dist_trainer.doctor.findings import Finding, State
from dist_trainer.errors import DistTrainerError

T = TypeVar("T")
_HUNG = "look at what it asks: a file system or a server that does not answer hangs a training too"
_LENGTH = 400  # of an error's words


@dataclass(frozen=True)
class Check:
    """`find` yields findings as it gets them; `name` stands for those that it can give no more."""

    name: str
    find: Callable[[], Iterable[Finding]]
    within_s: float = 10.0
    advice: str = _HUNG
    if_hung: State = "broken"


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """What all of them find, in their order. They run side by side, in threads that nobody waits for at the end:
    what hangs in the kernel cannot be ended, only left alone."""
    began, threads = time.monotonic(), [_Running(check) for check in checks]
    for each in threads:
        each.start()
    found: list[Finding] = []
    for each in threads:
        each.join(max(0.0, began + each.check.within_s - time.monotonic()))
        found += each.findings()
    return found


def let_checks_end(within_s: float) -> None:
    """Give checks that still run a moment to remove what they made."""
    deadline = time.monotonic() + within_s
    for each in threading.enumerate():
        if isinstance(each, _Running):
            each.join(max(0.0, deadline - time.monotonic()))


def is_any_hung() -> bool:
    """Whether a check of before still runs, or hangs."""
    return any(isinstance(each, _Running) for each in threading.enumerate())


class _Running(threading.Thread):
    def __init__(self, check: Check) -> None:
        super().__init__(name=f"doctor: {check.name}", daemon=True)
        self.check = check
        self._found: list[Finding] = []
        self._is_done = False

    def run(self) -> None:
        try:
            for finding in self.check.find():
                self._found.append(finding)
        except Exception as error:  # whatever it is, it is what was found
            self._found.append(failed(self.check, error))
        self._is_done = True

    def findings(self) -> list[Finding]:
        found = list(self._found)
        if not self._is_done:
            words = f"no answer within {self.check.within_s:g} s"
            found.append(Finding(self.check.name, self.check.if_hung, words, self.check.advice))
        return [_redacted(each) for each in found]


def failed(check: Check, error: BaseException) -> Finding:
    """An error that the check did not expect."""
    lines = str(error).strip().splitlines() or [""]
    is_ours = isinstance(error, DistTrainerError)  # whose words are meant for people
    words = lines[0] if is_ours else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return Finding(check.name, "broken", words[:_LENGTH], check.advice)


def _redacted(finding: Finding) -> Finding:
    return replace(finding, found=redact(finding.found), advice=redact(finding.advice))
