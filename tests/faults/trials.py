"""One random trial: a training, a fault and a moment drawn by a seed, and what must hold at the end."""

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_trainer.tracking.journal import metric_history
from tests.faults.catalogue import FAULTS, MLFLOW, RANKS, Fault, Missed, Moment, Scene
from tests.faults.recipe import CONFIG, STEPS, STEPS_PER_EPOCH, trained_rows
from tests.launchers.processes import wait_for
from tests.training.recipes import LENGTH
from tests.training_command import Training

Rows = dict[int, dict[int, list[int]]]  # by step and rank


@dataclass(frozen=True)
class Trial:
    """What came of one seed. `wall_s`: of all its commands; `useful_s`: of the steps that count in the end."""

    seed: int
    fault: str
    moment: str
    codes: list[int]
    missed: bool
    wall_s: float
    useful_s: float
    untouched_s: float  # the wall time of the reference that has the same processes
    steps_redone: int


@dataclass(frozen=True)
class Reference:
    """A training that nobody touched."""

    digest: str
    rows: Rows
    wall_s: float


@dataclass
class References:
    """One for each kind of training that trials draw, made when it is first needed: they take different times.

    Weights and rows are the same in all of them.
    """

    folder: Path
    made: dict[tuple[int, bool], Reference] = field(default_factory=dict)

    def of(self, num_workers: int, *, mlflow: bool) -> Reference:
        """The one with so many loader processes, with MLflow or without."""
        kind = (num_workers, mlflow)
        if kind not in self.made:
            settings = [f"data.num_workers={num_workers}", *([MLFLOW] if mlflow else [])]
            made = untouched(self.folder / f"reference-{len(self.made)}", *settings)
            for other in self.made.values():
                assert (made.digest, made.rows) == (other.digest, other.rows), (
                    f"{settings} changes the training"
                )
            self.made[kind] = made
        return self.made[kind]


def untouched(folder: Path, *settings: str) -> Reference:
    """A reference, and the proof that the training's own order is what the oracle takes it for."""
    folder.mkdir()
    training = Training(folder, *settings, config=CONFIG, steps=STEPS)
    try:
        return _measured(training)
    finally:
        for command in training.commands:
            command.end()


def _measured(training: Training) -> Reference:
    began = time.monotonic()
    training.finish()
    wall_s = time.monotonic() - began
    rows = rows_of(training)
    for first in range(0, STEPS, STEPS_PER_EPOCH):
        steps = [rows[step] for step in range(first, first + STEPS_PER_EPOCH)]
        epoch = [row for step in steps for rank in range(RANKS) for row in step[rank]]
        assert sorted(epoch) == list(range(LENGTH))
    _wait_for_the_rest(training)
    return Reference(training.digest(), rows, wall_s)


def try_once(seed: int, folder: Path, references: References) -> Trial:
    """Strike as the seed says, run the command until it is finished, and compare. Kinds of faults take turns."""
    draw = random.Random(seed)
    fault = FAULTS[seed % len(FAULTS)]
    moment = draw.choice(fault.moments)
    settings = (f"data.num_workers={draw.choice((0, 0, 2))}", *fault.settings)
    reference = references.of(_num_workers(settings), mlflow=MLFLOW in settings)
    training = Training(folder, *settings, config=CONFIG, steps=STEPS)
    print(f"FAULT_SEED={seed}: {fault.name}, {moment.__name__}, {', '.join(settings)}")
    try:
        trial = _carry_out(seed, fault, moment, training, draw, reference.wall_s)
        _check(training, fault, trial, reference)
    finally:
        for command in training.commands:
            command.end()
    return trial


def _num_workers(settings: Sequence[str]) -> int:
    """The last word on it counts: some faults need loader processes."""
    return int([each for each in settings if each.startswith("data.num_workers=")][-1].partition("=")[2])


def _carry_out(
    seed: int, fault: Fault, moment: Moment, training: Training, draw: random.Random, untouched_s: float
) -> Trial:
    since, missed = time.monotonic(), False
    command = training.start()
    try:
        scene = Scene(training, command, draw, draw.randrange(RANKS))
        moment(scene)
        fault.strike(scene)
    except Missed:
        missed = True
    codes = [command.finish(timeout_s=90)]
    wall_s = time.monotonic() - since
    assert codes[0] in (0, *fault.codes), f"exit code {codes[0]}: {command.stderr}"
    if codes[0] != 0:
        since = time.monotonic()
        command = training.start()
        codes.append(command.finish(timeout_s=90))
        wall_s += time.monotonic() - since
        assert codes[1] == 0, f"the same command again: exit code {codes[1]}: {command.stderr}"
    missed = missed or fault.came_too_late(codes[0]) or any(training.folder.glob("break-*"))
    useful_s, redone = count_steps(training.folder)
    return Trial(seed, fault.name, moment.__name__, codes, missed, wall_s, useful_s, untouched_s, redone)


def _check(training: Training, fault: Fault, trial: Trial, reference: Reference) -> None:
    assert training.digest() == reference.digest, "other weights"
    assert rows_of(training) == reference.rows, "other samples, or another order"
    if not fault.hangs:  # the watchdog would hide it
        said = "".join(command.stdout + command.stderr for command in training.commands)
        assert "no progress" not in said, "a hang of its own"
    status = training.status()
    assert (status["state"], status["step"]) == ("finished", STEPS)
    _wait_for_the_rest(training)
    if MLFLOW in fault.settings:
        check_points(training)


def _wait_for_the_rest(training: Training) -> None:
    """No process stays; one that carries to MLflow may need some seconds more."""
    for command in training.commands:
        wait_for(lambda command=command: not command.others(), timeout_s=20, what=f"left: {command.others()}")


def rows_of(training: Training) -> Rows:
    """The rows that count."""
    starts = [json.loads(line) for line in training.attempts() if '"start"' in line]
    rows = trained_rows(training.folder, {each["attempt"]: each["first_step"] for each in starts})
    assert sorted(rows) == list(range(STEPS))
    return rows


def count_steps(folder: Path) -> tuple[float, int]:
    """The seconds of the steps that count in the end, and how many were done in vain."""
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    last = {line["step"]: line["seconds"] for line in lines}
    return sum(last.values()), len(lines) - len(last)


def check_points(training: Training) -> None:
    """MLflow has the loss of each step once, with the journal's value, and one run that is finished."""
    done = training.sync()
    assert "0 left" in done.stdout, done.stdout + done.stderr
    with contextlib.closing(sqlite3.connect(training.folder / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        query = "select step, value from metrics where key = 'train/loss' order by step"
        points = database.execute(query).fetchall()
    losses = metric_history(training.run / "journal" / "rank-0.jsonl", "train/loss")
    assert points == list(losses.items())
    assert [step for step, _ in points] == list(range(1, STEPS + 1))
