"""How random trials judge: what a fault missed, and which untouched training each is compared with."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults import catalogue, trials
from tests.faults.catalogue import FAULTS, Missed, Scene, Strike
from tests.faults.trials import Reference, References
from tests.launchers.processes import Command
from tests.training_command import Training


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[Scene]:
    """A command that has ended with 0, and that nobody has waited for."""
    command = Command(sys.executable, "-c", "", folder=tmp_path)
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    yield Scene(Training(tmp_path), command, random.Random(0), rank=0)
    command.end()


@pytest.mark.parametrize(
    "strike",
    [
        catalogue.kill_command,
        catalogue.freeze_command,
        partial(catalogue.tell_command, signal.SIGTERM),
        partial(catalogue.tell_group, signal.SIGTERM),
        partial(catalogue.tell_everything, signal.SIGTERM),
    ],
    ids=["kill", "freeze", "tell", "group", "everything"],
)
def test_a_signal_to_a_command_that_has_ended_is_missed(strike: Strike, ended: Scene) -> None:
    with pytest.raises(Missed):
        strike(ended)


def test_a_command_that_ended_well_was_not_killed() -> None:
    late = {fault.name for fault in FAULTS if fault.came_too_late(0)}
    assert late == {"SIGKILL of the command", "SIGKILL of the command, with MLflow"}
    assert not any(fault.came_too_late(-signal.SIGKILL) for fault in FAULTS)


def test_a_reference_is_made_once_for_each_kind_and_all_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []

    def untouched(folder: Path, *settings: str) -> Reference:
        made.append(settings)
        return Reference("other" if len(made) > 2 else "digest", {0: {0: [1]}}, wall_s=float(len(made)))

    monkeypatch.setattr(trials, "untouched", untouched)
    references = References(tmp_path)
    for _ in range(2):
        assert references.of(0, mlflow=False).wall_s == 1
        assert references.of(2, mlflow=True).wall_s == 2
    assert made == [("data.num_workers=0",), ("data.num_workers=2", catalogue.MLFLOW)]
    with pytest.raises(AssertionError, match="changes the training"):
        references.of(2, mlflow=False)


@pytest.mark.parametrize("seed", range(len(FAULTS)))
def test_a_trial_is_compared_with_the_untouched_training_of_its_own_kind(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    class Asking(References):
        def of(self, num_workers: int, *, mlflow: bool) -> Reference:
            raise Asked(num_workers, mlflow)

    with pytest.raises(Asked) as caught:
        trials.try_once(seed, tmp_path, Asking(tmp_path))
    num_workers, mlflow = caught.value.args
    assert mlflow == ("MLflow" in FAULTS[seed].name)
    assert num_workers == 2 or "loader" not in FAULTS[seed].name
