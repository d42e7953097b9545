"""Which rank failed first, and what each of the others was doing at that moment."""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dist_trainer import errors
from dist_trainer.diagnose.evidence import Evidence, whole
from dist_trainer.diagnose.words import one_line
from dist_trainer.launchers.failures import Failure, first_failure, was_pulled_down
from dist_trainer.run_folder import WorkerError
from dist_trainer.spans import ranges

_SILENT_S = 2.0
_SHOWN_LINES = 5


@dataclass(frozen=True)
class FirstFailed:
    """The first rank that failed; what is not known is None or empty."""

    rank: int | None
    what: str  # one message, with the user's own line where there is one
    type: str = ""
    exit_code: int = 1
    node: str | None = None
    step: int | None = None
    phase: str = ""
    log: str = ""
    traceback: Sequence[str] = field(default=())  # the last lines of its own
    killed: bool = False


def first_failed(evidence: Evidence) -> FirstFailed | None:
    """By the words of failed ranks, their exit codes, and the attempt's last line; None where none failed."""
    end, codes = evidence.end or {}, evidence.exit_codes
    if evidence.words or codes:
        failure = first_failure(evidence.run, evidence.attempt, codes)
        return _known(evidence, failure)
    if not end.get("error") or end.get("exit_code") == 0:
        return None
    rank = whole(end.get("rank"))
    return FirstFailed(
        rank=rank,
        what=str(end["error"]),
        exit_code=whole(end.get("exit_code")) or 1,
        node=_text(end.get("node")),
        step=whole(end.get("last_step")),
        log=_log(evidence, rank),
        killed=end.get("cause") == "killed",
    )


def _known(evidence: Evidence, failure: Failure) -> FirstFailed:
    beat = evidence.beats.get(failure.rank)
    word = next((word for word in evidence.words if word.rank == failure.rank), None)
    node = _text((evidence.end or {}).get("node"))
    if node is None and len(evidence.nodes) == 1:
        node = evidence.nodes[0]
    return FirstFailed(
        rank=failure.rank,
        what=failure.what,
        type=failure.type,
        exit_code=failure.exit_code,
        node=node,
        step=failure.step if failure.step is not None else beat.step if beat else None,
        phase=beat.phase if beat else "",
        log=_log(evidence, failure.rank),
        traceback=_last_lines(word) if word else (),
        killed=failure.killed,
    )


def others(evidence: Evidence, first: FirstFailed | None) -> list[str]:
    """What the other ranks did then, one line for all that did the same."""
    groups: dict[str, list[int]] = {}
    for rank in evidence.ranks:
        if first is None or rank != first.rank:
            groups.setdefault(_doing(evidence, rank, is_over=first is not None), []).append(rank)
    return [
        f"{'rank' if len(ranks) == 1 else 'ranks'} {ranges(ranks)}: {doing}"
        for doing, ranks in groups.items()
    ]


def _doing(evidence: Evidence, rank: int, *, is_over: bool) -> str:
    beat, code = evidence.beats.get(rank), evidence.exit_codes.get(rank)
    word = next((word for word in evidence.words if word.rank == rank), None)
    if beat is not None:
        place = f"{one_line(beat.phase)} at step {beat.step}"
    elif word is not None and word.step is not None:
        place = f"at step {word.step}"
    else:
        place = "" if evidence.is_newest else "nothing is kept of an earlier attempt"
    parts = [place, _silent(evidence, rank), _ending(word, code) if is_over or word or code else ""]
    return ", ".join(filter(None, parts)) or "no sign of life"


def _ending(word: WorkerError | None, code: int | None) -> str:
    if word is not None and was_pulled_down(word):
        return "pulled down"
    if word is not None:
        return f"failed too, {word.type}: {one_line(word.message, 70)}"
    if code is None:
        return "pulled down"
    if code < 0:
        return f"killed by {_signal_name(-code)}"
    return "pulled down" if code == 1 else f"exit code {code}"


def _silent(evidence: Evidence, rank: int) -> str:
    """How much earlier than the last of them it was last heard of, where one clock measured both."""
    if len(evidence.nodes) != 1 or rank not in evidence.beats:
        return ""
    late = max(beat.time for beat in evidence.beats.values()) - evidence.beats[rank].time
    return f"silent for {late:.0f} s" if late > _SILENT_S else ""


def _last_lines(word: WorkerError) -> list[str]:
    """The innermost frames and the error, of an exception that is not meant as a message."""
    known = getattr(errors, word.type, None)
    if isinstance(known, type) and issubclass(known, errors.DistTrainerError):
        return []
    lines = [line for line in str(word.traceback).splitlines() if re.search(r"[^\s^~]", line)]
    return [one_line(line, 200, keep_indent=True) for line in lines[-_SHOWN_LINES:]]


def _log(evidence: Evidence, rank: int | None) -> str:
    path = evidence.run.log_path(evidence.attempt, rank or 0)
    return str(path) if path.is_file() else ""


def _text(value: object) -> str | None:
    return one_line(value) if isinstance(value, str) and value else None


def _signal_name(number: int) -> str:
    known: Iterable[int] = {each.value for each in signal.Signals}
    return signal.Signals(number).name if number in known else f"signal {number}"
