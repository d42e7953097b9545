"""MLflow is down, frozen, killed or slow beside the whole command: nothing lost, nothing doubled, the same weights.

tests/tracking/test_mlflow_outages.py has the same for the one process that carries the metrics. What an outage
costs in time is measured by `make bench`.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import history
from dist_trainer.tracking.sync_state import SyncState
from tests.faults.ledger import is_whole, record, times
from tests.faults.recipe import CONFIG, STEPS_PER_EPOCH
from tests.launchers.processes import Command, wait_for
from tests.tracking.servers import Server, Stored
from tests.tracking.slow_proxy import SlowProxy
from tests.training_command import Training

pytestmark = [
    pytest.mark.timeout(300),
    # MLflow's own store, opened in this process
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
EPOCHS = 30
STEPS = EPOCHS * STEPS_PER_EPOCH
FROZEN_S = times(6, 60)


class Tracked(Training):
    """A training that is slow until it is told to hurry, so that all outages come in the midst of it."""

    def __init__(self, folder: Path, uri: str) -> None:
        hooks = "hooks=[{target: tests.faults.recipe.Timed, seconds: 0}]"
        settings = (f"tracking.uri={uri}", f"train.epochs={EPOCHS}", "checkpoint.every_steps=50", hooks)
        super().__init__(folder, *settings, config=CONFIG, steps=STEPS)
        self._slow = folder / "slow-step"
        self._slow.write_text("0.45")

    def hurry(self) -> None:
        self._slow.unlink()

    def folder_of_run(self) -> RunFolder:
        return RunFolder.open(self.run)

    def carried(self) -> int:
        """How far into the journal MLflow has everything."""
        if not (self.run / "run.json").exists():
            return 0
        return SyncState.load(self.folder_of_run()).offsets.get("rank-0.jsonl", 0)

    def wait_until_more_is_carried(self) -> None:
        before = self.carried()
        wait_for(lambda: self.carried() > before, timeout_s=90, what="nothing more comes to MLflow")

    def wait_until_it_is_told(self, words: str) -> None:
        log = self.run / "logs" / "mlflow-sync.log"
        wait_for(lambda: log.exists() and words in log.read_text(), timeout_s=60, what=words)


@pytest.fixture
def tracked(tmp_path: Path) -> Iterator[Callable[..., Tracked]]:
    """Makes a training, and afterwards looks that no process of it is left."""
    made: list[Tracked] = []

    def make(uri: str) -> Tracked:
        made.append(Tracked(tmp_path, uri))
        return made[-1]

    yield make
    for command in (command for one in made for command in one.commands):
        try:
            wait_for(
                lambda command=command: not command.others(), timeout_s=20, what=f"left: {command.others()}"
            )
        finally:
            command.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet."""
    server = Server(tmp_path / "server")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a training without MLflow."""
    training = Tracked(tmp_path_factory.mktemp("untracked"), "null")
    training.hurry()
    training.finish()
    return training.digest()


def down_at_start(server: Server, one: Tracked) -> None:
    one.wait_until_it_is_told("Connection refused")
    server.start()
    one.wait_until_more_is_carried()


def frozen(server: Server, one: Tracked) -> None:
    one.wait_until_more_is_carried()
    server.signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    server.signal(signal.SIGCONT)
    one.wait_until_more_is_carried()


def killed(server: Server, one: Tracked) -> None:
    one.wait_until_more_is_carried()
    server.signal(signal.SIGKILL)
    one.wait_until_it_is_told("Connection")
    server.start()


def parameter_changed(server: Server, one: Tracked) -> None:
    """A limit that no gradient reaches: another parameter, and the same weights."""
    one.wait_until_more_is_carried()
    command = one.commands[-1]
    command.send(signal.SIGUSR2)
    assert command.finish(timeout_s=120) == 75, command.stderr
    one.overrides = (*one.overrides, "train.clip_grad_norm=1e9", "--allow-change", "train.clip_grad_norm")
    one.start()
    one.wait_until_more_is_carried()


def slow(server: Server, one: Tracked) -> None:
    """Each answer comes late: see the proxy."""
    one.wait_until_more_is_carried()
    one.wait_until_more_is_carried()


def gone_at_the_end(server: Server, one: Tracked) -> None:
    one.wait_until_more_is_carried()
    server.signal(signal.SIGKILL)


Outage = Callable[[Server, Tracked], None]
SAMPLE: list[tuple[Outage, ...]] = [(down_at_start, frozen, parameter_changed, killed)]
EACH: list[Outage] = [down_at_start, frozen, parameter_changed, killed, slow, gone_at_the_end]


@pytest.mark.parametrize(
    "outages",
    [*SAMPLE, *((outage,) for outage in EACH)] if is_whole() else SAMPLE,
    ids=lambda outages: "-".join(outage.__name__ for outage in outages),
)
def test_outages_of_the_server_lose_and_double_no_point_and_change_no_weight(
    outages: tuple[Outage, ...], server: Server, tracked: Callable[..., Tracked], untracked: str
) -> None:
    if down_at_start not in outages:
        server.start()
    with SlowProxy(server.uri, delay_s=lambda batch: 2.0).serving() as proxy:
        one = tracked(proxy.uri if slow in outages else server.uri)
        one.start()
        for outage in outages:
            outage(server, one)
            assert one.commands[-1].process.poll() is None, "it was to happen while training"
        one.hurry()
        last = one.commands[-1]
        assert last.finish(timeout_s=120) == 0, last.stderr
        if gone_at_the_end in outages:
            assert "not all points are there yet: dist-trainer sync run" in last.stdout
            server.start()
        assert_everything_is_there_once(server, one)
    if parameter_changed in outages:
        assert_the_change_is_told(server, one, last)
    assert one.digest() == untracked
    for outage in outages:
        record(f"MLflow {outage.__name__.replace('_', ' ')}", tried=1, lost=0)


def assert_the_change_is_told(server: Server, one: Tracked, last: Command) -> None:
    """In what the command prints, and in MLflow, which keeps a parameter's first value."""
    assert "train.clip_grad_norm: null -> 1000000000.0" in last.stdout
    stored = Stored(one.folder_of_run(), server.uri)
    assert stored.params["train.clip_grad_norm"] == "null"
    assert stored.tags["changed.train.clip_grad_norm"] == "null -> 1000000000.0"


def assert_everything_is_there_once(server: Server, one: Tracked) -> None:
    """Every point of the journal is in MLflow once, and the run is finished there."""
    done: Command = one.sync()
    assert done.process.returncode == 0 and "0 left" in done.stdout, done.stdout + done.stderr
    stored = Stored(one.folder_of_run(), server.uri)
    assert stored.status == "FINISHED"
    metrics = history(one.run / "journal" / "rank-0.jsonl")
    assert sorted(metrics["train/loss"]) == list(range(1, STEPS + 1))
    for key, values in metrics.items():
        steps = [step for step, _ in stored.points(key)]
        assert steps == sorted(values), key
    assert stored.points("train/loss") == sorted(metrics["train/loss"].items())
