"""The machine is wanted back: in whatever phase the signal comes, all is saved within seconds and nothing is lost."""

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.tracking.heartbeat import read_heartbeat
from tests.launchers.processes import wait_for
from tests.training_command import CONFIG, STEPS, Training

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]
GRACE_S = 10.0
SLOW = (
    CONFIG.replace("{target: tests.training.recipes.Noisy}", "{target: tests.training.slow.SlowRows}")
    .replace("{target: tests.training.recipes.Noisy,", "{target: tests.training.slow.SlowOpening,")
    .replace("{target: dist_trainer.training.metrics.Accuracy}", "{target: tests.training.slow.SlowAccuracy}")
    .replace(
        "{target: tests.training.recipes.Slow, seconds: 0.01}", "{target: tests.training.slow.SlowSteps}"
    )
)


class Wanted(Training):
    """A run with parts that can be made slow while it trains, and a signal for it."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, *overrides, config=SLOW)

    def slow_down(self, **seconds: float) -> None:
        for name, value in seconds.items():
            (self.folder / "new").write_text(str(value))
            (self.folder / "new").rename(self.folder / f"slow-{name}")

    def speed_up(self) -> None:
        for path in self.folder.glob("slow-*"):
            path.unlink()

    def wait_for_phase(self, phase: str) -> None:
        def there() -> bool:
            beat = read_heartbeat(self.run / "heartbeat" / "rank-0")
            return beat is not None and beat.phase == phase

        wait_for(there, timeout_s=60, what=phase)

    def commits(self) -> dict[str, float]:
        """When each checkpoint was committed."""
        return {path.parent.name: path.stat().st_mtime for path in self.run.glob("checkpoints/*/COMMIT.json")}

    def step(self) -> int:
        beat = read_heartbeat(self.run / "heartbeat" / "rank-0")
        assert beat is not None
        return beat.step


@pytest.fixture
def wanted(tmp_path: Path) -> Iterator[Callable[..., Wanted]]:
    """Makes a run, and afterwards looks that no process of it is left."""
    made: list[Wanted] = []

    def make(*overrides: str) -> Wanted:
        made.append(Wanted(tmp_path, *overrides))
        return made[-1]

    yield make
    for command in (command for one in made for command in one.commands):
        try:
            wait_for(lambda command=command: not command.others(), timeout_s=20)
        finally:
            command.end()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The weights of a run that nobody touched, by its number of ranks."""
    known: dict[int, str] = {}

    def digest(ranks: int) -> str:
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f"untouched-{ranks}")
            reference = Wanted(folder, f"launch.workers_per_node={ranks}")
            reference.finish()
            known[ranks] = reference.digest()
        return known[ranks]

    return digest


def in_training(one: Wanted) -> None:
    one.wait_for_step(33)


def in_steps_that_became_slow(one: Wanted) -> None:
    one.wait_for_step(33)
    one.slow_down(step=2.0)
    one.wait_for_step(one.step() + 1)


def in_an_evaluation(one: Wanted) -> None:
    one.slow_down(evaluation=1.0)
    one.wait_for_step(24)
    one.wait_for_phase("evaluate")


def during_a_save_in_the_background(one: Wanted) -> None:
    one.wait_for_step(12)
    one.slow_down(save=2.0)
    one.wait_for_step(31)  # the one of step 20 or 30 is under way


def while_data_are_opened(one: Wanted) -> None:
    one.slow_down(opening=3.0)
    log = one.run / "logs" / "attempt-0001" / "rank-0.log"
    wait_for(log.exists, timeout_s=60)  # the workers are there
    time.sleep(1.0)


def while_waiting_for_slow_data(one: Wanted) -> None:
    one.slow_down(step=0.6)
    one.wait_for_step(3)  # steps so slow that each begins with an exchange
    one.slow_down(rows=3.0)
    one.wait_for_step(one.step() + 1)
    one.wait_for_phase("data")
    time.sleep(0.5)


def while_data_stall(one: Wanted) -> None:
    one.wait_for_step(33)
    one.slow_down(rows=0.5)
    one.wait_for_phase("data")
    time.sleep(0.5)


@pytest.mark.parametrize(
    ("phase", "ranks", "num_workers"),
    [
        (in_training, 3, 2),
        (in_steps_that_became_slow, 3, 2),
        (in_an_evaluation, 3, 2),
        (in_an_evaluation, 2, 0),
        (during_a_save_in_the_background, 3, 2),
        (while_data_are_opened, 2, 2),
        (while_waiting_for_slow_data, 3, 2),
        (while_waiting_for_slow_data, 2, 0),
        (while_data_stall, 3, 0),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_within_a_short_grace_all_is_saved_and_the_resumed_run_is_the_untouched_one(
    phase: Callable[[Wanted], None],
    ranks: int,
    num_workers: int,
    wanted: Callable[..., Wanted],
    untouched: Callable[[int], str],
) -> None:
    one = wanted(
        f"launch.workers_per_node={ranks}", f"data.num_workers={num_workers}", "data.eval_batch_size=2"
    )
    command = one.start()
    phase(one)
    sent = time.time()
    command.send(signal.SIGUSR2)
    assert command.finish(timeout_s=60) == 75, command.stderr
    ended_s = time.time() - sent
    status, step = one.status(), one.step()
    newest = max(one.commits())
    print(
        f"{phase.__name__}: committed {one.commits()[newest] - sent:.2f} s after the signal, ended {ended_s:.2f}"
    )
    assert (status["state"], status["reason"], status["run_again"]) == ("stopped", "SIGUSR2", True)
    assert status["step"] == step == int(newest[5:14]), "no step is lost"
    assert one.commits()[newest] - sent < GRACE_S
    assert ended_s < GRACE_S + 2
    one.speed_up()
    one.finish()
    assert one.digest() == untouched(ranks)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGUSR2, "SIGUSR2"), (signal.SIGTERM, "SIGTERM or SIGINT")]
)
def test_a_signal_to_every_process_at_once_loses_nothing(
    number: signal.Signals, reason: str, wanted: Callable[..., Wanted], untouched: Callable[[int], str]
) -> None:
    one = wanted("tracking.uri=sqlite:///mlflow.db", "train.epochs=60")
    command = one.start()
    one.wait_for_step(1)
    wait_for(lambda: any("mlflow_sync" in line for line in command.others().values()), timeout_s=30)
    one.wait_for_step(one.step() + 10)
    hit = command.send_to_all(number)
    assert len(hit) >= 3 * 3 + 2, "ranks, two loaders each, the forkserver, MLflow's process"
    assert command.finish(timeout_s=60) == 75, command.stderr
    status = one.status()
    assert (status["state"], status["reason"]) == ("stopped", reason)
    assert status["run_again"] is (number == signal.SIGUSR2)
    assert status["step"] == one.step() == int(max(one.commits())[5:14])
    expected = "SCHEDULED" if number == signal.SIGUSR2 else "KILLED"
    with sqlite3.connect(one.folder / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [(expected,)]
        points = database.execute(
            "select step from metrics where key = 'train/loss' order by step"
        ).fetchall()
    database.close()
    assert points == [(step,) for step in range(1, status["step"] + 1)]


def test_a_preemption_that_ends_the_step_while_the_last_save_is_slow(
    wanted: Callable[..., Wanted], untouched: Callable[[int], str]
) -> None:
    one = wanted("checkpoint.every_steps=1000")
    command = one.start()
    one.wait_for_step(33)
    one.slow_down(save=6.0)
    command.send_to_all(signal.SIGUSR2)
    time.sleep(3)
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGTERM):
        command.send_to_all(number)
        time.sleep(0.05)
    time.sleep(1.2)  # long enough for a second one to count as impatience, were it a terminal's
    command.send_to_all(signal.SIGTERM)
    assert not one.commits(), "the save is under way"
    assert command.finish(timeout_s=60) == 75, command.stderr
    status = one.status()
    assert (status["state"], status["reason"], status["run_again"]) == ("stopped", "SIGUSR2", True)
    assert [int(name[5:14]) for name in one.commits()] == [status["step"]] and status["step"] < STEPS
    one.speed_up()
    one.finish()
    assert one.digest() == untouched(3)
