"""All that a page says of one run, read piece by piece: what is torn or missing is a sentence, and hides no other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dist_trainer.adapters.files import plain_number
from dist_trainer.checkpoint.choose import open_store
from dist_trainer.checkpoint.retention import best
from dist_trainer.config.load import read_section
from dist_trainer.config.redact import redact
from dist_trainer.config.schema import CheckpointConfig
from dist_trainer.diagnose.evidence import UNREADABLE, Evidence, gather
from dist_trainer.diagnose.explain import Explanation, explain
from dist_trainer.diagnose.words import one_line
from dist_trainer.report import given_pictures, points, predictions, ranks
from dist_trainer.report.attempts import TimeLine, begun_at, time_line
from dist_trainer.report.given_pictures import GivenPictures
from dist_trainer.report.points import Journal
from dist_trainer.report.predictions import Predictions
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.parameters import parameters, redact_yaml

FOLDER = "report"
_UNREADABLE = (*UNREADABLE, RuntimeError, MemoryError)
_MOST_CHECKPOINTS = 30
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Saved:
    """One committed checkpoint."""

    name: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoints:
    """Those that are there: how many, the newest of them, and the best by checkpoint.keep_best."""

    total: int = 0
    newest: Sequence[Saved] = ()
    best: Saved | None = None


@dataclass(frozen=True)
class Facts:
    """One run. What could not be read is empty, and told in `problems`."""

    name: str
    folder: Path
    explanation: Explanation | None
    evidence: Evidence | None
    journal: Journal
    results: Mapping[str, float]  # the final metrics, or the last ones so far
    time_line: TimeLine
    phases: ranks.Phases | None
    step_times: ranks.StepTimes | None
    stragglers: Sequence[str]
    last_words: Sequence[str]  # what each rank was last doing, where that is no end in good order
    checkpoints: Checkpoints
    settings: Mapping[str, str]  # by dotted key, redacted
    config_yaml: str  # redacted
    code: str
    predictions: Sequence[Predictions]
    pictures: GivenPictures
    problems: Sequence[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One word."""
        return self.explanation.state if self.explanation else "unknown"

    @property
    def world_size(self) -> int:
        """Of the newest attempt that came to train."""
        sizes = [each.world_size for each in self.time_line.attempts if each.world_size]
        return sizes[-1] if sizes else 1


def read(run: RunFolder) -> Facts:
    """Everything of one run."""
    taken = _Taken()
    evidence = taken.take("the folder", lambda: gather(run, None), None)
    explanation = taken.take("how it stands", lambda: explain(run), None)
    journal = taken.take("journal", lambda: points.read(run.journal_path(0)), Journal())
    # what the evidence could not read is no configuration: too large, or aliases that grow beyond any memory
    is_yaml = bool(evidence and evidence.config)
    text = taken.take("config.yaml", lambda: run.config_path.read_text() if is_yaml else "", "")
    facts = Facts(
        name=run.path.name,
        folder=run.path,
        explanation=explanation,
        evidence=evidence,
        journal=journal,
        results=taken.take("status.json", lambda: _results(evidence, journal), dict[str, float]()),
        time_line=_time_line(taken, run, journal, evidence, explanation),
        phases=taken.take("profile/phases.json", lambda: ranks.read_phases(run.path), None),
        step_times=taken.take("step times", lambda: ranks.step_times(journal.curves), None),
        stragglers=[redact(one_line(said)) for said in ranks.stragglers(journal.events.get("straggler", []))],
        last_words=taken.take("heartbeat", lambda: _last_words(evidence, explanation), list[str]()),
        checkpoints=taken.take("checkpoints", lambda: _checkpoints(run), Checkpoints()),
        settings=taken.take("config.yaml", lambda: parameters(text), dict[str, str]()),
        config_yaml=taken.take("config.yaml", lambda: redact_yaml(text), ""),
        code=taken.take("run.json", lambda: _code(evidence), ""),
        predictions=_predictions(taken, run.path / FOLDER),
        pictures=_pictures(taken, run.path / FOLDER),
    )
    found = [*(evidence.problems if evidence else []), *journal.problems, *taken.problems]
    unreadable = list(explanation.unreadable) if explanation else []
    problems = dict.fromkeys(redact(one_line(each)) for each in [*found, *unreadable])
    return replace(facts, problems=list(problems))


class _Taken:
    """Takes one piece after another and keeps what stood in the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def take(self, name: str, read: Callable[[], T], otherwise: U) -> T | U:
        """What `read` gives, or `otherwise` and a problem."""
        try:
            return read()
        except _UNREADABLE as error:
            if not isinstance(error, FileNotFoundError):  # that, the evidence tells
                said = (str(error) or type(error).__name__).splitlines()[0]
                self.problems.append(f"{name} cannot be read: {said[:160]}")
            return otherwise


def _time_line(
    taken: _Taken,
    run: RunFolder,
    journal: Journal,
    evidence: Evidence | None,
    explanation: Explanation | None,
) -> TimeLine:
    lines = evidence.lines if evidence else []
    heard = taken.take("heartbeat", lambda: _last_heard(journal, evidence), dict[int, float]())
    begun = taken.take("fence", lambda: begun_at(run.path / "fence", lines), dict[int, float]())
    return taken.take(
        "attempts.jsonl",
        lambda: time_line(
            lines,
            journal.events.get("saved", []),
            last_heard=heard,
            begun=begun,
            saves=journal.counts["saved"],
            is_running=explanation is not None and explanation.state in ("running", "starting"),
        ),
        TimeLine(),
    )


def _last_heard(journal: Journal, evidence: Evidence | None) -> dict[int, float]:
    """When each attempt left its last word: an event, or for the newest a beat."""
    heard: dict[int, float] = dict(journal.last_heard)
    for beat in evidence.beats.values() if evidence else ():
        heard[beat.attempt] = max(heard.get(beat.attempt, 0.0), beat.time)
    return heard


def _results(evidence: Evidence | None, journal: Journal) -> dict[str, float]:
    """By status.json, or else the last value of each metric that an evaluation measured, or of the loss."""
    status = evidence.status if evidence else None
    if status is not None and status.results:
        return {redact(one_line(name, 80)): float(value) for name, value in status.results.items()}
    last = {name: curve.last for name, curve in journal.curves.items()}
    measured = {name: value for name, value in last.items() if name.startswith(("val/", "test/"))}
    return measured or {name: value for name, value in last.items() if name == "train/loss"}


def _last_words(evidence: Evidence | None, explanation: Explanation | None) -> list[str]:
    if evidence is None or explanation is None or explanation.state in ("finished", "stopped"):
        return []
    beats = [evidence.beats[rank] for rank in sorted(evidence.beats)[:32]]
    return [f"rank {beat.rank}: {one_line(beat.doing, 120)}" for beat in beats]


def _checkpoints(run: RunFolder) -> Checkpoints:
    config = read_section(run.config_path, "checkpoint", CheckpointConfig)
    store = open_store(run, config, report=lambda message: None)
    if not store.storage.is_local:  # a store may be away: its names are in the journal
        return Checkpoints()
    found = [checkpoint for checkpoint, damaged in store.committed() if not damaged]
    top = best(found, config.keep_best) if config.keep_best else None
    saved = [Saved(each.name, each.step, each.metrics) for each in found[:_MOST_CHECKPOINTS]]
    return Checkpoints(len(found), saved, Saved(top.name, top.step, top.metrics) if top else None)


def _code(evidence: Evidence | None) -> str:
    code = evidence.info.code if evidence and evidence.info else {}
    commit = one_line(code.get("commit") or "", 60)
    return f"{commit}{', with changes that were not committed' if commit and code.get('dirty') else ''}"


def _predictions(taken: _Taken, folder: Path) -> list[Predictions]:
    found: list[Predictions] = []
    for path in taken.take(FOLDER, lambda: predictions.files(folder), list[Path]()):
        one = taken.take(f"{FOLDER}/{path.name}", partial(predictions.read, path), None)
        if one is not None:
            found.append(one)
    return found


def _pictures(taken: _Taken, folder: Path) -> GivenPictures:
    name = f"{FOLDER}/{given_pictures.FOLDER}"
    paths, more = taken.take(name, lambda: given_pictures.files(folder), ([], 0))
    if not paths:
        return GivenPictures([], 0)
    captions = taken.take(
        f"{name}/{given_pictures.CAPTIONS}", lambda: given_pictures.captions(folder), dict[str, str]()
    )
    read = [
        taken.take(f"{name}/{path.name}", partial(given_pictures.read, path, captions), None)
        for path in paths
    ]
    return GivenPictures([each for each in read if each is not None], more)


def as_json(facts: Facts) -> dict[str, Any]:
    """The numbers that were found, for programs."""
    return {
        "run": facts.name,
        "folder": str(facts.folder),
        "state": facts.state,
        "says": facts.explanation.sentence if facts.explanation else "",
        "results": {name: plain_number(value) for name, value in facts.results.items()},
        "attempts": [each.as_json() for each in facts.time_line.attempts],
        "rewound_steps": facts.journal.rewound,
        "metrics": {
            name: {"points": len(curve.steps), "last": plain_number(curve.last), "step": int(curve.steps[-1])}
            for name, curve in facts.journal.curves.items()
        },
        "step_ms": vars(facts.step_times) if facts.step_times else None,
        "phases": {row.name: row.share for row in facts.phases.rows} if facts.phases else None,
        "predictions": [each.as_json() for each in facts.predictions],
        "problems": list(facts.problems),
    }
