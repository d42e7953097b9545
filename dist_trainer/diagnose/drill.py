"""`dist-trainer drill`: a fault done on purpose to a short training of the user's own configuration.

One training is left alone, and is what the others are compared with. Of each other one the ranks are held after a
step that lies behind a checkpoint; then the fault strikes, and the command is given again as often as it takes.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from dist_trainer.diagnose.compare import Ending, ending_of
from dist_trainer.diagnose.drill_plan import Plan
from dist_trainer.diagnose.drilled import Drilled
from dist_trainer.diagnose.faults import Fault
from dist_trainer.diagnose.words import count
from dist_trainer.errors import FINISHED, DistTrainerError
from dist_trainer.tracking.journal import iterate_journal

_STARTS = 4
_REFERENCE, _AGAIN = "reference", "reference-again"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsed:
    """What came of one fault."""

    fault: str
    passed: bool
    verdict: str
    finished: bool = False
    same_weights: bool = False
    same_losses: bool = False
    steps_lost: int = 0
    seconds_lost: float | None = None  # from the fault until a step beyond it was done
    useful_share: float | None = (
        None  # of the time that its commands took: what is left without those seconds
    )
    starts: int = 0  # of the command
    attempts: int = 0
    left_behind: Sequence[str] = ()


@dataclass(frozen=True)
class Drill:
    """The result of all of them."""

    steps: int
    world_size: int
    seconds: float  # of the untouched training
    results: Sequence[Rehearsed]
    skipped: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether every one ended like the untouched one."""
        return all(result.passed for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"passed": self.passed, **asdict(self)}


class _Reference:
    """The training that nothing happens to."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.ending, training = self._train(_REFERENCE)
        self.seconds, self.world_size = training.seconds, training.world_size
        self._is_repeatable: bool | None = None

    def _train(self, name: str) -> tuple[Ending, Drilled]:
        training = Drilled(self._plan, name, self._plan.write(name, hold_at=None, changes={}))
        with _ended(training):
            training.start()
            if training.wait() != FINISHED:
                raise DistTrainerError(
                    f"the run itself does not train:\n{training.output.read_text().strip()}"
                )
        return ending_of(training.run, self._plan.steps), training

    @property
    def is_repeatable(self) -> bool:
        """Whether a second one ends with the same weights: else no fault can be blamed for others."""
        if self._is_repeatable is None:
            try:
                self._is_repeatable = self._train(_AGAIN)[0].weights == self.ending.weights
            except DistTrainerError:  # the other one has come to an end
                self._is_repeatable = False
        return self._is_repeatable


def drill(plan: Plan, faults: Sequence[Fault], say: Say) -> Drill:
    """Rehearse the faults one after another; `say` hears each verdict. Leaves no process."""
    with _interrupts():
        reference = _Reference(plan)
        ranks = count(reference.world_size, "rank")
        say(f"{'untouched':<18} {plan.steps} steps with {ranks} in {reference.seconds:.1f} s")
        results, skipped = [], []
        for fault in faults:
            if fault.needs_loaders and not plan.config.data.num_workers:
                skipped.append(fault.name)
                say(f"{fault.name:<18} not rehearsed: data.num_workers is 0, so there is no process to die")
                continue
            results.append(_rehearse(plan, fault, reference))
            say(f"{fault.name:<18} {results[-1].verdict}")
    return Drill(plan.steps, reference.world_size, reference.seconds, results, skipped)


def _rehearse(plan: Plan, fault: Fault, reference: _Reference) -> Rehearsed:
    hold_at = 2 * plan.every_steps + (0 if fault.in_save else 1)
    config = plan.write(fault.name, hold_at=hold_at, changes=fault.changes)
    training = Drilled(plan, fault.name, config)
    with _ended(training):
        try:
            training.start()
            training.wait_until_held()
            fault.strike(training)
            code = _train_to_the_end(training)
            left = list(training.left().values())
        except DistTrainerError as error:
            return Rehearsed(fault.name, False, f"FAILED: {error}", starts=training.started)
    return _judge(training, fault, hold_at, code, left, reference)


def _train_to_the_end(training: Drilled) -> int:
    """The last exit code: the command is given again, as a user would, until it has finished or will not."""
    code = training.wait()
    while code != FINISHED and training.started < _STARTS:
        training.left()
        training.start()
        code = training.wait()
    return code


def _judge(
    training: Drilled, fault: Fault, hold_at: int, code: int, left: list[str], reference: _Reference
) -> Rehearsed:
    starts = [line for line in training.run.attempts() if line["event"] == "start"]
    lost = sum(max(0, hold_at - line.get("first_step", 0)) for line in starts[1:])
    problem = f"did not finish (exit code {code}): {training.last_words()}" if code != FINISHED else ""
    compared = _Compared()
    if not problem:
        compared = _compare(training, reference)
        problem = compared.problem
    if not problem and left:
        problem = f"left {len(left)} of its processes behind: {left[0][:80]}"
    elif compared.differs and not reference.is_repeatable:
        problem = (
            "cannot be judged: two untouched trainings differ from each other; something is random beyond the seed "
            "(train.deterministic: true, or the data set's own randomness)"
        )
    seconds = _seconds_lost(training)
    share = max(0.0, 1 - seconds / training.seconds)
    price = f"{count(lost, 'step')} and {seconds:.1f} s lost, {share:.0%} of the time useful"
    return Rehearsed(
        fault=fault.name,
        passed=not problem,
        verdict=f"FAILED: {problem}" if problem else f"passed; {price}",
        finished=code == FINISHED,
        same_weights=compared.same_weights,
        same_losses=compared.same_losses,
        steps_lost=lost,
        seconds_lost=seconds,
        useful_share=share,
        starts=training.started,
        attempts=len(starts),
        left_behind=left,
    )


@dataclass(frozen=True)
class _Compared:
    """Whether a finished training ended like the untouched one."""

    problem: str = ""
    differs: bool = False  # both could be read
    same_weights: bool = False
    same_losses: bool = False


def _compare(training: Drilled, reference: _Reference) -> _Compared:
    steps = training.plan.steps
    try:
        ending = ending_of(training.run, steps)
    except DistTrainerError as error:  # what a drill is there to find: no reason to end it
        return _Compared(f"finished, and what it saved last cannot be read: {error}")
    same_weights = ending.weights == reference.ending.weights
    other = reference.ending.first_difference(ending, steps)
    if same_weights and other is None:
        return _Compared(same_weights=True, same_losses=True)
    where = f"from step {other} on" if other is not None else "at the end"
    problem = f"finished, and not as the untouched training did: it differs {where}"
    return _Compared(problem, True, same_weights, other is None)


def _seconds_lost(training: Drilled) -> float:
    """Of each attempt that was not the last: from what it did last until a step beyond that was done.

    By one clock, for all of it happens on this machine; an attempt that was held counts from the fault on.
    """
    records = [r for r, _ in iterate_journal(training.run.journal_path(0)) if r["kind"] == "metrics"]
    lost = 0.0
    for attempt in sorted({record["attempt"] for record in records})[:-1]:
        own = [record for record in records if record["attempt"] == attempt]
        reached = max(record["step"] for record in own)
        stood = max(own[-1]["time"], training.struck_at or 0.0)
        beyond = [r["time"] for r in records if r["attempt"] > attempt and r["step"] > reached]
        lost += max(0.0, min(beyond) - stood) if beyond else 0.0
    return lost


@contextmanager
def _ended(training: Drilled) -> Iterator[None]:
    try:
        yield
    finally:
        training.end()


@contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what was started is ended on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
