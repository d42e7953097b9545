"""A sweep that SLURM runs, with stand-ins for its commands: who is known to be dead, sent once, and cancelled."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm import script
from dist_trainer.slurm.array_elements import together
from dist_trainer.slurm.scheduler import SchedulerUnavailable
from dist_trainer.slurm.script import Refused, Unanswered
from dist_trainer.slurm.submissions import Submission, add_job, jobs_of
from dist_trainer.sweep_folder import SweepFolder
from dist_trainer.sweeps import submit
from dist_trainer.sweeps.plan import freeze, plan
from dist_trainer.sweeps.rows import rows, wanted_metric
from dist_trainer.sweeps.sending import settle
from dist_trainer.sweeps.sweep import Way, begin, resume
from dist_trainer.tracking.mlflow_sync import sync
from tests.jobs.standing_runs import StandingRuns
from tests.slurm.stand_ins import NO_CONTROLLER, FakeSlurm, queue_line
from tests.sweeps.test_grid import CONFIG

Make = Callable[..., SweepFolder]
SETTINGS = ["slurm.partition=cpu", "slurm.time=00:10:00"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("squeue", "")
    return fake


@pytest.fixture
def make(slurm: FakeSlurm) -> Make:
    """A sweep `grid` of which each cell has this status, submitted as job 120."""

    def frozen(*statuses: Status) -> SweepFolder:
        folder = freeze(
            plan(["small.yaml"], SETTINGS, [f"seed=0:{len(statuses)}"], name="grid").sweep, "runs"
        )
        for index, status in enumerate(statuses):
            run = cell(folder, index)
            run.write_status(status)
            add_job(run, Submission(f"120_{index}", script="../grid/slurm/0001.sbatch", time=status.time + 1))
        return folder

    return frozen


def cell(folder: SweepFolder, index: int) -> RunFolder:
    return folder.run_of(folder.cell(index))


def states(folder: SweepFolder) -> list[str]:
    return [row.standing.state for row in rows(folder, wanted_metric(folder))]


def line(index: int, state: str, **fields: str) -> str:
    return queue_line(f"120_{index}", state, name="grid", **fields)


def element_jobs(folder: SweepFolder) -> list[list[str]]:
    cells = [cell(folder, each.index) for each in folder.sweep.cells]
    return [[submission.job for submission in jobs_of(run)] for run in cells]


def new(count: int) -> list[Status]:
    return [Status("new") for _ in range(count)]


LATER = "2099-11-23T17:50:52"


def of_now(text: str) -> str:
    """Lines of squeue whose jobs were submitted after whatever the test notes."""
    return text.replace("2026-11-23T17:50:52", LATER)


def test_a_cell_is_not_dead_while_slurm_does_not_answer(slurm: FakeSlurm, make: Make) -> None:
    folder = make(Status("finished"), Status("new"), Status("stopped", run_again=True), Status("running"))
    slurm.fails("squeue", NO_CONTROLLER)
    slurm.fails("scontrol", NO_CONTROLLER)
    assert states(folder) == ["finished", "unknown", "unknown", "running"]
    with pytest.raises(SchedulerUnavailable, match=r"may still have cells 1, 2, 3.*Unable to contact"):
        resume(folder, Way(local=False))
    shown = CliRunner().invoke(app, ["sweep", "status", "grid"]).stdout
    assert shown.count("Unable to contact slurm controller") == 1
    assert "how it stands: dist-trainer sweep status grid" in shown


def test_a_cell_that_stopped_and_was_sent_again_is_not_known_by_its_old_word(
    slurm: FakeSlurm, make: Make
) -> None:
    folder = make(Status("failed", "boom"))
    slurm.fails("squeue", NO_CONTROLLER)
    assert states(folder) == ["unknown"]
    cell(folder, 0).write_status(Status("failed", "boom again", time=jobs_of(cell(folder, 0))[0].time + 5))
    assert states(folder) == ["failed"]


def test_what_the_accounts_know_is_known_though_the_controller_is_silent(
    slurm: FakeSlurm, make: Make
) -> None:
    folder = make(*new(2))
    slurm.fails("squeue", NO_CONTROLLER)
    times = "|".join([LATER] * 3)
    slurm.says("sacct", f"120_0|CANCELLED by 0|None assigned|{times}|0:0|None|grid")
    assert states(folder) == ["stopped", "unknown"]


def test_cells_that_left_the_queue_are_asked_for_together(slurm: FakeSlurm, make: Make) -> None:
    folder = make(*new(5))
    waiting = line(0, "RUNNING", nodes="n1") + "\n" + line(1, "PENDING", reason="Priority")
    ended = "\n".join([waiting, *(line(index, "NODE_FAIL", nodes="n1") for index in (2, 3, 4))])
    slurm.says("squeue", {"--states=all": of_now(ended), "": of_now(waiting)})
    assert states(folder) == ["starting", "pending", "lost", "lost", "lost"]
    assert [len(slurm.calls(name)) for name in ("squeue", "scontrol", "sacct")] == [2, 1, 1]


def test_cells_that_nobody_knows_are_run_again(slurm: FakeSlurm, make: Make) -> None:
    folder = make(*new(2))
    found = rows(folder, wanted_metric(folder))
    assert [row.is_missing for row in found] == [True, True]


class Sbatch:
    """In the place of sbatch: what it does, and what is true while it does it."""

    def __init__(self, patch: pytest.MonkeyPatch, answer: str | Exception) -> None:
        self.sent = 0
        self.answer = answer
        self.meanwhile: Callable[[], Any] = lambda: None
        patch.setattr(script, "send", self.send)
        patch.setattr(script, "test_only", lambda text, config: "")
        patch.setattr(submit, "check_store", lambda run, loaded: None)
        patch.setattr(submit, "modules_of", lambda folder, cells: [])

    def send(self, text: str, path: Path, config: object) -> str:
        self.sent += 1
        path.write_text(text)
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def start() -> int:
    return begin(plan(["small.yaml"], SETTINGS, ["seed=0:2"], name="grid"), Way(local=False, snapshot=False))


def test_a_resume_while_the_sweep_is_given_to_slurm_sends_nothing(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch, "120")

    def resume_meanwhile() -> None:
        with pytest.raises(UsageError, match="sweep grid is being submitted by pid"):
            resume(SweepFolder.open("runs/grid"), Way(local=False, snapshot=False))

    sbatch.meanwhile = resume_meanwhile
    assert start() == 0
    assert sbatch.sent == 1
    folder = SweepFolder.open("runs/grid")
    assert element_jobs(folder) == [["120_0"], ["120_1"]]
    assert not (folder.path / "slurm" / "sending.json").exists()


def test_what_sbatch_refuses_leaves_nothing_and_what_it_took_stays(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sbatch(monkeypatch, Refused("no such partition"))
    with pytest.raises(DistTrainerError, match="no such partition"):
        start()
    assert not Path("runs/grid").exists() and not Path("runs/grid-0000").exists()
    Sbatch(monkeypatch, "120")

    def no_room(run: RunFolder, submission: Submission) -> None:
        raise DistTrainerError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("dist_trainer.sweeps.sending.add_job", no_room)
        with pytest.raises(DistTrainerError, match="disk is full"):
            start()
    folder = SweepFolder.open("runs/grid")
    slurm.says("squeue", of_now(line(1, "PENDING")))
    settle(folder)
    assert element_jobs(folder) == [["120_0"], ["120_1"]]


def test_a_job_whose_number_did_not_come_back_is_found_and_not_sent_again(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch, Unanswered("timed out"))
    slurm.fails("squeue", NO_CONTROLLER)
    with pytest.raises(Unanswered):
        start()
    folder = SweepFolder.open("runs/grid")
    assert element_jobs(folder) == [[], []]
    for local in (False, True):
        with pytest.raises(SchedulerUnavailable, match="Unable to contact"):
            resume(folder, Way(local=local, snapshot=False))
    waiting = of_now("\n".join(line(index, "PENDING", reason="Priority") for index in range(2)))
    slurm.says("squeue", of_now(queue_line("7", "PENDING", name="other")) + "\n" + waiting)
    assert resume(folder, Way(local=False, snapshot=False)) == 0
    assert element_jobs(folder) == [["120_0"], ["120_1"]]
    assert sbatch.sent == 1


def test_a_job_that_trained_and_left_the_queue_is_found_by_its_cell(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Sbatch(monkeypatch, Unanswered("timed out"))
    with pytest.raises(Unanswered):
        start()
    folder = SweepFolder.open("runs/grid")
    StandingRuns(tmp_path).start(cell(folder, 1), job="130_1", ago=-5)
    settle(folder)
    assert element_jobs(folder) == [["130_0"], ["130_1"]]


def test_a_job_that_slurm_never_had_is_sent_again(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = Sbatch(monkeypatch, Unanswered("timed out"))
    with pytest.raises(Unanswered):
        start()
    sbatch.answer = "121"
    folder = SweepFolder.open("runs/grid")
    assert resume(folder, Way(local=False, snapshot=False)) == 0
    assert element_jobs(folder) == [["121_0"], ["121_1"]]


def test_all_cells_are_cancelled_by_one_command_and_those_that_waited_are_noted(
    slurm: FakeSlurm, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(Status("finished"), Status("running"), *new(4))
    runs = of_now(line(1, "RUNNING", nodes="n1"))
    slurm.says("squeue", "\n".join([runs, *(of_now(line(index, "PENDING")) for index in (2, 3, 5))]))
    told: list[tuple[str, ...]] = []

    def scancel(*jobs: str) -> None:
        told.append(jobs)
        ended = "\n".join([runs, *(of_now(line(index, "CANCELLED")) for index in (2, 3, 5))])
        slurm.says("squeue", {"--states=all": ended, "": runs})

    monkeypatch.setattr("dist_trainer.sweeps.cancel.cancel", scancel)
    done = CliRunner().invoke(app, ["cancel", "grid", "--json"])
    answers = [each["done"] for each in json.loads(done.stdout)["runs"]]
    assert answers == ["told", "taken out", "taken out", "nothing", "taken out"]
    assert told == [("120_[1-3,5]",)]
    kept = [cell(folder, index).read_status().state for index in range(6)]
    assert kept == ["finished", "running", "stopped", "stopped", "new", "stopped"]
    assert len(slurm.calls("squeue")) == 4  # the queue and the array, before and after


def test_many_cells_that_fared_alike_are_one_line(slurm: FakeSlurm, make: Make) -> None:
    make(*(Status("running") for _ in range(12)))
    slurm.says("squeue", of_now("\n".join(line(index, "RUNNING", nodes="n1") for index in range(12))))
    done = CliRunner().invoke(app, ["cancel", "grid"])
    assert done.stdout.startswith("grid: 12 cells are told to stop; they save first")
    assert len(done.stdout.splitlines()) == 1


def test_a_sweep_that_is_being_submitted_is_not_cancelled_beside(slurm: FakeSlurm, make: Make) -> None:
    folder = make(*new(1))
    with folder.lock():
        done = CliRunner().invoke(app, ["cancel", "grid"])
    assert done.exit_code == 2 and "sweep grid is being submitted" in done.stderr
    assert not slurm.calls("scancel")


def test_a_silent_slurm_is_no_proof_that_nothing_is_left_to_cancel(slurm: FakeSlurm, make: Make) -> None:
    make(*new(1))
    slurm.fails("squeue", NO_CONTROLLER)
    done = CliRunner().invoke(app, ["cancel", "grid"])
    assert done.exit_code == 1 and "SLURM may still have job 120_0" in done.stderr


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_several_runs_are_carried_to_mlflow_by_one_process(slurm: FakeSlurm, tmp_path: Path) -> None:
    runs = StandingRuns(tmp_path)
    found = [runs.make(name, status=Status("stopped", "cancelled", 800)) for name in ("one", "two")]
    for run in found:
        run.config_path.write_text(f"name: {run.path.name}\ntracking: {{uri: 'sqlite:///mlflow.db'}}\n")
        runs.train(run)
    assert sync(*found).problem == ""
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("KILLED",)] * 2
    database.close()


def test_jobs_are_named_together_as_scancel_takes_them() -> None:
    assert together(["7", "120_3", "120_1", "120_2", "120_7", "121_0"]) == ["7", "120_[1-3,7]", "121_[0]"]
