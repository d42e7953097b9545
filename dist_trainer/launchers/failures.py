"""Which rank failed first, and whether trying again can help."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dist_trainer import errors
from dist_trainer.run_folder import RunFolder, WorkerError

_LOST = 255  # multiprocessing's word for a process whose forkserver is gone
_NEVER_AGAIN = (2, 65, 93)  # the user's mistake, no usable checkpoint, no progress
_FOR_GOOD = {errors.FencedOut.__name__, errors.NotSaved.__name__}
_PULLED_DOWN_TYPES = {"PeerFailed", "DistBackendError", "DistNetworkError", "DistStoreError"}
_PULLED_DOWN = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket|recvbytes|processgroup"
    r"|timed out waiting|wait timeout",
    re.IGNORECASE,
)


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Failure:
    """The first cause of an attempt's end."""

    rank: int
    what: str  # one message, ready to show
    log: Path
    step: int | None = None
    type: str = ""
    message: str = ""
    exit_code: int = 1
    node: str | None = None  # where it happened, if known
    exit_codes: Mapping[int, int] = field(
        default_factory=dict
    )  # of the ranks that failed, with those pulled down

    @property
    def killed(self) -> bool:
        """Whether a signal from outside ended the rank: there is no exception then."""
        return not self.type

    @property
    def may_be_repeated(self) -> bool:
        """Whether another attempt could go better: not after a mistake, when another writer took over, nor when
        the store has refused for so long that training would only go on unsaved."""
        return self.exit_code not in _NEVER_AGAIN and self.type not in _FOR_GOOD

    def repeats(self, other: "Failure | None") -> bool:
        """The same exception at the same step, on whichever rank: a third time would be the same again."""
        if other is None or self.killed:
            return False
        return (self.type, self._reason, self.step) == (other.type, other._reason, other.step)

    @property
    def _reason(self) -> str:
        """What is the same each time: of a hang no seconds."""
        return (
            re.sub(r"for \d+ s", "", self.message) if self.type == errors.RankStuck.__name__ else self.message
        )


def first_failure(run: RunFolder, attempt: int, exit_codes: Mapping[int, int]) -> Failure:
    """The cause, from the words that failed ranks left and the exit codes of this node's dead ranks.

    `exit_codes` are those from before peers were ended. The earliest word counts, but a rank that only lost
    its connection was pulled down by another: one that said something else, or was killed and said nothing.
    """
    words = run.read_errors(attempt)
    own = [word for word in words if not was_pulled_down(word)]
    if own:
        return _from_word(run, attempt, own[0])
    silent = {rank: code for rank, code in exit_codes.items() if rank not in {word.rank for word in words}}
    if silent:
        rank = min(silent, key=lambda rank: (silent[rank] >= 0, rank))  # a signal before an exit code
        return Failure(rank, _ending(rank, silent[rank]), run.log_path(attempt, rank))
    if words:
        return _from_word(run, attempt, words[0])
    return Failure(0, "the workers ended without a word", run.log_path(attempt, 0))


def failure_of(run: RunFolder, attempt: int) -> Failure | None:
    """The exception that an attempt left word of; None where it left none."""
    return first_failure(run, attempt, {}) if attempt and run.read_errors(attempt) else None


def was_pulled_down(word: WorkerError) -> bool:
    """Whether a rank only lost its connection to another one, which failed before it."""
    if word.type in _PULLED_DOWN_TYPES:
        return True
    return word.type in ("RuntimeError", "ConnectionError") and bool(_PULLED_DOWN.search(word.message))


def _from_word(run: RunFolder, attempt: int, word: WorkerError) -> Failure:
    known = getattr(errors, word.type, None)
    meant_for_the_user = isinstance(known, type) and issubclass(known, errors.DistTrainerError)
    what = word.message if meant_for_the_user else f"{word.type}: {word.message}{_place(word.traceback)}"
    names_its_rank = word.exit_code == 2 or known in (errors.RanksDiverged, errors.RankStuck)
    return Failure(
        rank=word.rank,
        what=what if names_its_rank else _with_place(word, what, names_its_step=meant_for_the_user),
        log=run.log_path(attempt, word.rank),
        step=word.step,
        type=word.type,
        message=word.message,
        exit_code=word.exit_code,
    )


def _with_place(word: WorkerError, what: str, *, names_its_step: bool) -> str:
    """With rank and step; the step that the message begins with, if any: it failed in it, after `word.step`."""
    step: object = word.step
    if names_its_step and (own := re.match(r"step (\d+): ", what)):
        step, what = own[1], what[own.end() :]
    return f"rank {word.rank} failed{f' at step {step}' if step is not None else ''}: {what}"


def _place(traceback: str) -> str:
    """The last line of the user's own code on the way to the error; nothing where there is none."""
    for file, line, function in reversed(_FRAME.findall(traceback)):
        if not re.search(r"/(site-packages|dist_trainer|lib/python3[.]\d+)/", file) and "<" not in file:
            return f" ({Path(file).name}:{line}, in {function})"
    return ""


def _ending(rank: int, code: int) -> str:
    if code == _LOST:
        return f"rank {rank} was lost: the process that started it was killed"
    if code >= 0:
        return f"rank {rank} ended with exit code {code} and no error message"
    name = signal.Signals(-code).name
    return f"rank {rank} was killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
