"""How benchmarks measure: in turns, as medians, with ratios of one round; not how long anything takes."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import carried, images, peers, recovery, steps
from benchmarks.compared import beside_fastest
from benchmarks.frame import Quantity, Row, Sample, as_table, in_turns, rows
from benchmarks.goals import Figure, as_goals
from benchmarks.peers.protocol import Asked, Task
from benchmarks.started import ours, peer
from benchmarks.terminal import run_on_terminal
from benchmarks.trained import run, ticks, training
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.sync_state import JournalPoints, SyncState
from tests.launchers.processes import Command, wait_for
from tests.training_command import Training


def test_variants_take_turns_and_each_round_begins_with_another() -> None:
    order: list[str] = []

    def variant(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            order.append(name)
            return {"step": float(len(order))}

        return measure

    samples = in_turns({name: variant(name) for name in "abc"}, 3, tell=lambda line: None)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert samples["a"] == [{"step": 1.0}, {"step": 6.0}, {"step": 8.0}]


def test_a_ratio_compares_within_a_round_and_the_value_is_a_median() -> None:
    samples: dict[str, list[Sample]] = {
        "none": [{"step": 1.0}, {"step": 2.0}, {"step": 4.0}],  # the machine got slower
        "some": [{"step": 1.1}, {"step": 2.2}, {"step": 4.4, "exit": 5.0}],
    }
    quantities = [Quantity("step", "ms", 1000), Quantity("exit", "s", as_ratio=False)]
    base, some, end = rows("MLflow", samples, quantities, baseline="none")
    assert base == Row("MLflow", "none", "step", 2000, "ms", 1000, 4000)
    assert (some.value, some.ratio) == (2200, pytest.approx(1.1))
    assert end == Row("MLflow", "some", "exit", 5, "s", 5, 5)
    assert as_table([some])[-1] == "| MLflow: step | some | 2.2e+03 ms | 1.1e+03 to 4.4e+03 | 1.100 |"


def test_a_figure_holds_ours_against_the_fastest_peer_of_each_round() -> None:
    samples: dict[str, list[Sample]] = {
        "here": [{"step": 1.0}, {"step": 2.0}, {"step": 6.0}],
        "Accelerate": [{"step": 2.0}, {"step": 8.0}, {"step": 6.0}],
        "Lightning": [{"step": 4.0}, {"step": 4.0}, {"step": 8.0}],
        "compute alone": [{"step": 1.0}, {"step": 1.0}, {"step": 2.0}],
    }
    quantity = Quantity("step", "ms", 1000)
    found = beside_fastest(
        samples, "a step", quantity, over=["Accelerate", "Lightning"], floor="compute alone", goal=0.6
    )
    expected = Figure("a step", "ms", 2000, {"Accelerate": 6000, "Lightning": 4000}, 1000, 0.5, 0.6)
    assert found == expected and found.reached


def test_goals_are_told_with_what_was_reached() -> None:
    slow = Figure("--help", "s", 0.35, {"Accelerate": 2.5}, 0.0149, None, goal=0.3)
    fast = Figure("order", "indices/s", 1.2e7, {"randperm": 4e6}, None, 3.0, goal=2.0, at_least=True)
    assert as_goals([slow, fast]) == [
        "| what | here | hand-written | Accelerate | Lightning | floor | ratio | goal | reached |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        "| --help | 0.35 s |  | 2.5 s |  | 0.0149 s |  | <= 0.3 s | no |",
        "| order (randperm 4,000,000 indices/s) | 12,000,000 indices/s |  |  |  |  | 3.000 | >= 2 | yes |",
    ]


ROW = Row("recovery", "nothing", "wall time", 5, "s", 4, 6)
LINE = "| recovery: wall time | nothing | 5 s | 4 to 6 |  |"


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[int], list[Row | Figure]]]:
    """One of each page, in place of the real ones, as if peers were installed."""
    figure = Figure("--help", "s", 0.2, {}, None, None, goal=0.3)
    chosen: dict[str, Callable[[int], list[Row | Figure]]] = {
        "recovery": lambda rounds: [ROW] * rounds,
        "starts": lambda rounds: [figure],
    }
    monkeypatch.setattr(command, "MEASUREMENTS", chosen)
    monkeypatch.setattr(command, "missing", lambda: None)
    return chosen


def test_the_command_measures_what_it_is_asked_for(
    measurements: dict[str, Callable[[int], list[Row | Figure]]], capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(rounds: int) -> list[Row | Figure]:
        raise AssertionError("not asked for")

    measurements["starts"] = broken
    assert command.main(["--only", "recovery", "--rounds", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [LINE, LINE]
    with pytest.raises(SystemExit):
        command.main(["--only", "recovery", "--write"])
    assert "--write replaces the whole tables" in capsys.readouterr().err


def test_goals_and_what_faults_cost_are_written_into_a_page_each(
    measurements: dict[str, Callable[[int], list[Row | Figure]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pages = {name: tmp_path / f"{name}.md" for name in ("RELIABILITY", "PERFORMANCE")}
    for name, page in pages.items():
        page.write_text("<!-- bench -->\n<!-- end of bench -->\n")
        monkeypatch.setattr(command, name, page)
    assert command.main(["--write"]) == 0
    reliability, performance = (page.read_text() for page in pages.values())
    goal = "| --help | 0.2 s |  |  |  |  |  | <= 0.3 s | yes |"
    assert LINE in reliability and goal not in reliability
    assert goal in performance and LINE not in performance
    assert "torch" in reliability and "torch" in performance, "with the machine and the versions"


def test_both_pages_have_a_place_for_their_tables() -> None:
    for page in (command.RELIABILITY, command.PERFORMANCE):
        assert "<!-- bench -->\n" in page.read_text() and "<!-- end of bench -->" in page.read_text()


def test_peers_that_are_not_installed_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--only", "steps"])
    assert "accelerate and lightning are not installed" in (said := capsys.readouterr().err)
    assert "pip install -e '.[bench]'" in said


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", peers.MODULES)
@pytest.mark.parametrize("task", ["linear", "augmented"])
def test_a_peer_trains_on_two_ranks_and_tells_when_each_step_ended(
    name: str, task: Task, tmp_path: Path
) -> None:
    if name != "hand-written" and peers.missing():
        pytest.skip(str(peers.missing()))
    path = images.synthetic(tmp_path / "images.npz", train=300)
    times = peer(name, Asked(task, 10, images=path))
    assert len(times.stamps) == 10 and times.began < times.stamps[0]
    assert sorted(times.stamps) == list(times.stamps)


@pytest.mark.timeout(120)
def test_our_training_tells_of_its_steps_as_the_peers_do() -> None:
    times = ours(steps.CONFIG, "train.steps=10")
    assert len(times.stamps) == 10 and times.first_step["first step"] > 0
    assert times.steps(after=2).keys() == {"median step", "mean step"}


def test_a_command_that_fails_on_its_terminal_says_what_it_wrote(tmp_path: Path) -> None:
    says = "import sys; print(sys.stdout.isatty()); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3 .*True"):
        run_on_terminal([sys.executable, "-c", says], tmp_path)


@pytest.mark.timeout(120)
def test_a_training_for_a_benchmark_tells_when_each_step_ended() -> None:
    with training(steps=20) as one:
        ended = run(one)
        times = [tick.time for tick in ticks(one)]
        assert [tick.step for tick in ticks(one)] == list(range(1, 21))
        assert times == sorted(times) and times[-1] < ended
    assert not one.folder.exists()
    assert recovery.AT_STEP < recovery.STEPS


@pytest.mark.timeout(60)
def test_the_clock_of_a_killed_command_starts_at_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the last process that holds its output has gone."""
    one = Training(tmp_path)
    monkeypatch.setattr(one, "wait_for_step", lambda step: 0)
    child_lives_on = "import os, time; time.sleep(60 if os.fork() else 3)"
    command = Command(sys.executable, "-c", child_lives_on, folder=tmp_path)
    try:
        wait_for(command.others)
        struck = recovery._kill_command(one, command)
        assert time.time() - struck > 1
    finally:
        command.end()


def test_a_training_is_held_until_mlflow_took_or_refused_something(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "run", "name: run\n", working_folder=tmp_path)
    assert not carried.is_met(run) and carried.points_sent(run.path) == 0
    log = run.path / "logs" / "mlflow-sync.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("2026-01-01 00:00:00 another process carries this run\n")
    assert not carried.is_met(run)
    log.write_text("2026-01-01 00:00:00 MLflow: MlflowException: refused\n")
    assert carried.is_met(run)
    log.unlink()
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        journal.metrics(1, {"loss": 1.0, "rate": 2.0})
    state = SyncState()
    ((points, offset),) = JournalPoints(run.journal_path(0), state).batches()
    state.sent("rank-0.jsonl", points, offset)
    state.save(run)
    assert carried.is_met(run) and carried.points_sent(run.path) == 2


@pytest.mark.timeout(120)
def test_steps_with_a_server_that_is_down_are_measured_once_it_has_refused() -> None:
    held = (
        "hooks=[{target: benchmarks.trained.Clock}, {target: benchmarks.carried.HoldUntilCarried, step: 5}]"
    )
    with training("tracking.uri=http://127.0.0.1:9", held, steps=10) as one:
        one.start()
        one.wait_for_step(6, timeout_s=90)
        assert carried.is_met(RunFolder.open(one.run)) and carried.points_sent(one.run) == 0
