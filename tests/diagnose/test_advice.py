"""What explain tells to do next, on hand-made run folders: a command that goes on with that very run."""

import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from dist_trainer import errors
from dist_trainer.config.load import load_config
from dist_trainer.diagnose.explain import Explanation, explain
from dist_trainer.launchers.existing import is_done
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm.submissions import Submission, add_job
from tests.slurm.stand_ins import INVALID, FakeSlurm, queue_line

CONFIG = """
name: {name}
model: {{target: torch.nn.Linear, in_features: 2, out_features: 1}}
data: {{train: {{target: builtins.list}}, global_batch_size: {rows}, num_workers: 2}}
loss: {{target: torch.nn.MSELoss}}
optimizer: {{target: torch.optim.SGD, lr: {rate}}}
launch: {{workers_per_node: 1}}
train: {{accumulate_steps: {parts}, clip_grad_norm: {norm}}}
checkpoint: {{every_steps: {every}}}
"""
NOT_FINITE = "step {step}: the gradient is not finite (loss {loss}, norm nan), and so on"
TIMES = "2031-01-02T03:04:05|2031-01-02T04:04:05|2031-01-02T03:04:05"


class Trial:
    """A run of one rank in the test's folder, and what is said of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: RunFolder

    def make(self, name: str = "q", *, sweep: str | None = None, **values: Any) -> "Trial":
        known = {"name": name, "rows": 32, "parts": 1, "norm": "null", "rate": 0.1, "every": 500, **values}
        path = self.folder / "runs" / name
        text = CONFIG.format(**known)
        self.run = RunFolder.create(path, text, working_folder=self.folder, sweep=sweep)
        return self

    def attempt(
        self, *, first: int = 0, last: int | None = None, job: str | None = None, code: int = 1
    ) -> int:
        """One that began, and has ended where `last` says at which step."""
        number = self.run.new_fence({"pid": 1, "host": "n1", "time": time.time()})
        line: dict[str, Any] = {"attempt": number, "time": time.time()}
        of_job = {"job": job, "restart": 0} if job else {}
        start = {**line, "event": "start", "nodes": ["n1"], "first_step": first, "world_size": 1}
        self.run.record({**start, **of_job})
        if last is not None:
            ended = {"last_step": last, "cause": "failed", "exit_code": code, "node": "n1", "rank": 0}
            self.run.record({**line, "event": "end", **ended, "error": "told", "exit_codes": {"0": code}})
        return number

    def fail(self, error: BaseException, *, step: int = 30, job: str | None = None) -> "Trial":
        number = self.attempt(last=step, job=job)
        self.run.write_error(number, 0, error=error, step=step, exit_code=1)
        self.run.write_status(Status("failed", str(error), step))
        return self

    def give_up(self, why: str, *, code: int = 93) -> None:
        number = self.run.new_fence({"pid": 1, "host": "n1", "time": time.time()})
        self.run.write_error(number, 0, error=errors.NoProgress(why), step=None, exit_code=code)
        self.run.write_status(Status("do-not-requeue", why))

    def save(self, step: int) -> "Trial":
        folder = self.run.checkpoints / f"step-{step:09d}-f0001"
        folder.mkdir()
        for name in ("MANIFEST.json", "COMMIT.json"):
            (folder / name).write_text("{}")
        return self

    def move(self, name: str) -> "Trial":
        self.run = RunFolder.open(self.run.path.rename(self.run.path.with_name(name)))
        return self

    def told(self) -> Explanation:
        found = explain(self.run)
        assert not found.unreadable, found.unreadable
        return found


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.chdir(tmp_path)
    return Trial(tmp_path)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("squeue", "")
    fake.says("scontrol", INVALID)
    return fake


def test_a_cell_goes_on_with_its_sweep_and_as_a_run_of_its_own_where_something_is_changed(
    trial: Trial, tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "grid"
    trial.make("grid-0003", sweep=str(sweep)).fail(ValueError("an error of their own"))
    assert trial.told().next == "dist-trainer train runs/grid-0003/config.yaml", "a copy without its sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    assert trial.told().next == "dist-trainer sweep resume grid --only 3"
    trial.save(20).fail(errors.NonFiniteError("step 30: the gradient is not finite"))
    option = "train.clip_grad_norm=1.0 --allow-change train.clip_grad_norm"
    assert trial.told().next == f"dist-trainer train runs/grid-0003/config.yaml {option}"
    trial.fail(errors.NoUsableCheckpoint("none is whole"))
    assert "dist-trainer train runs/grid-0003/config.yaml --fresh starts anew" in trial.told().change_first


@pytest.mark.parametrize("name", ["grid-0003-old-1", "grid-old-0003", "grid-3", "other-0003"])
def test_a_cell_that_was_moved_aside_is_no_cell_of_another_number(
    trial: Trial, tmp_path: Path, name: str
) -> None:
    for sweep in ("grid", "grid-old", "other"):
        (tmp_path / "runs" / sweep).mkdir(parents=True)
        (tmp_path / "runs" / sweep / "sweep.json").write_text("{}")
    trial.make("grid-0003", sweep=str(tmp_path / "runs" / "grid")).fail(ValueError("x"))
    assert trial.move(name).told().next == f"dist-trainer train runs/{name}/config.yaml name={name}"


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_run_whose_folder_has_another_name_is_the_one_that_goes_on(trial: Trial, is_saved: bool) -> None:
    trial.make().fail(ValueError("x"))
    if is_saved:
        trial.save(20)
    program, verb, config, *words = shlex.split(trial.move("q-old-1").told().next)
    assert (program, verb, config) == ("dist-trainer", "train", "runs/q-old-1/config.yaml")
    assert words == ["name=q-old-1", *(["--allow-change", "name"] if is_saved else [])]
    loaded = load_config([config], words[:1])
    assert trial.run.path == (trial.folder / "runs" / loaded.config.name)
    assert not is_done(trial.run, loaded, words[2:]), "and it is not refused as another configuration"
    if is_saved:
        with pytest.raises(errors.UsageError, match="another configuration"):
            is_done(trial.run, loaded, [])


def test_it_is_moved_aside_again_under_its_own_name(trial: Trial) -> None:
    trial.make().fail(errors.NoUsableCheckpoint("none is whole")).save(20)
    anew = "dist-trainer train runs/q-old-1/config.yaml name=q-old-1 --fresh starts anew"
    assert anew in trial.move("q-old-1").told().change_first


@pytest.mark.parametrize(
    ("last", "every", "option"),
    [
        (60, 50, " checkpoint.every_steps=20"),
        (24, 50, " checkpoint.every_steps=2"),
        (22, 50, ""),
        (90, 20, ""),
        (20, 50, ""),
    ],
    ids=["far-behind", "near", "too-near", "not-sooner-than-now", "at-once"],
)
def test_a_run_that_stands_still_saves_sooner_where_that_gets_past_it(
    trial: Trial, last: int, every: int, option: str
) -> None:
    trial.make(every=every).save(20)
    trial.attempt(first=0, last=400)  # before a checkpoint was lost
    for _ in range(3):
        trial.attempt(first=20, last=last)
    trial.give_up("the last 3 attempts all started from the checkpoint of step 20")
    told = trial.told()
    assert told.state == "given up"
    assert told.next == f"dist-trainer train runs/q/config.yaml{option}"
    assert ("saving sooner gets past it" if option else "mend that error") in told.change_first


def test_a_run_that_was_given_up_for_want_of_time_gets_more(trial: Trial, slurm: FakeSlurm) -> None:
    trial.make().save(20)
    with trial.run.config_path.open("a") as file:
        file.write("slurm: {time: 30}\n")
    add_job(trial.run, Submission("7", script="slurm/0001.sbatch"))
    slurm.says("sacct", f"7|FAILED|n1|{TIMES}|93:0||q")
    trial.attempt(first=20, last=20, job="7", code=93)
    why = "the evaluation of val did not end within 40 s: give the job more (slurm.time), or fewer rows"
    trial.run.write_error(1, 0, error=errors.NoProgress(why), step=20, exit_code=93)
    trial.run.write_status(Status("do-not-requeue", why))
    told = trial.told()
    assert told.next == "dist-trainer submit runs/q/config.yaml slurm.time=MORE"
    assert "more time than slurm.time=30" in told.change_first


SKIPPED = "every row was bad"


@pytest.mark.parametrize(
    ("message", "first", "option"),
    [
        (
            "data.train row 42: ValueError: x; `data.bad_rows: skip` leaves such rows out",
            "mend that row",
            " data.bad_rows=skip",
        ),
        (
            "the last 9 rows, an epoch's, were all left out as bad (data.bad_rows: skip): nothing is trained any "
            "more; data.bad_rows=raise shows the first one's error",
            SKIPPED,
            " data.bad_rows=raise",
        ),
        (
            "a loader process (data.num_workers) died, by its own fault or for want of memory: killed",
            "fewer loader processes than 2",
            "",
        ),
        ("nowhere.npz: no such file; pack one", "mend the error above", ""),
        ("data.train rows 1, 2 can each be read, but not put into one batch: x", "mend the error above", ""),
        ("data.train is empty (list of length 0)", "mend the error above", ""),
    ],
    ids=["a-row", "all-skipped", "loader", "no-file", "shapes", "empty"],
)
def test_data_that_cannot_be_used_is_mended_by_what_is_wrong_with_it(
    trial: Trial, message: str, first: str, option: str
) -> None:
    told = trial.make().fail(errors.DataError(message)).told()
    assert told.next == f"dist-trainer train runs/q/config.yaml{option}"
    assert first in told.change_first


@pytest.mark.parametrize(
    ("now", "then"), [("null", "1.0"), ("5", "1.0"), ("1.0", "0.5"), ("0.1", "0.05"), ("1.0e-5", "5e-06")]
)
def test_a_gradient_is_never_given_more_room_than_it_has(trial: Trial, now: str, then: str) -> None:
    told = trial.make(norm=now).fail(errors.NonFiniteError("step 30: not finite")).told()
    assert told.next == f"dist-trainer train runs/q/config.yaml train.clip_grad_norm={then}"
    taken = load_config([trial.run.config_path], [f"train.clip_grad_norm={then}"]).config.train
    assert taken.clip_grad_norm == float(then)


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("rate", "option"), [("0.1", " optimizer.lr=0.01"), ("5.0e-6", " optimizer.lr=5e-07"), ("null", "")]
)
def test_a_loss_that_is_not_finite_is_no_matter_of_clipping(
    trial: Trial, loss: str, rate: str, option: str
) -> None:
    error = errors.NonFiniteError(NOT_FINITE.format(step=31, loss=loss))
    told = trial.make(rate=rate).fail(error).told()
    assert told.sentence.startswith("failed: rank 0 failed at step 31: the gradient is not finite (loss ")
    assert told.next == f"dist-trainer train runs/q/config.yaml{option}"
    assert "the loss itself was not finite" in told.change_first and "data" in told.change_first


def test_a_loss_that_is_not_finite_before_any_update_is_no_matter_of_the_rate(trial: Trial) -> None:
    told = trial.make().fail(errors.NonFiniteError(NOT_FINITE.format(step=1, loss="nan")), step=0).told()
    assert told.next == "dist-trainer train runs/q/config.yaml"
    assert "before the attempt's first update" in told.change_first


def test_a_gradient_that_is_not_finite_where_the_loss_is_is_limited(trial: Trial) -> None:
    told = trial.make().fail(errors.NonFiniteError(NOT_FINITE.format(step=31, loss="2.5"))).told()
    assert told.next == "dist-trainer train runs/q/config.yaml train.clip_grad_norm=1.0"


@pytest.mark.parametrize(
    ("parts", "rows", "then"), [(1, 32, 2), (4, 32, 8), (32, 32, None)], ids=["one", "four", "all"]
)
def test_micro_batches_become_smaller_than_they_are(
    trial: Trial, parts: int, rows: int, then: int | None
) -> None:
    trial.make(parts=parts, rows=rows).fail(RuntimeError("CUDA out of memory"))
    option = f" train.accumulate_steps={then}" if then else ""
    assert trial.told().next == f"dist-trainer train runs/q/config.yaml{option}"
    number = trial.attempt(last=30, code=-9)
    trial.run.write_status(Status("failed", "rank 0 was killed by SIGKILL (out of memory?)", 30))
    told = trial.told()
    assert told.attempt == number and "SIGKILL" in told.sentence
    halves = f"train.accumulate_steps={then} halves" if then else "one sample already"
    assert halves in told.change_first


def test_an_old_job_is_not_blamed_for_what_was_trained_here_since(trial: Trial, slurm: FakeSlurm) -> None:
    trial.make()
    add_job(trial.run, Submission("7", script="slurm/0001.sbatch", time=time.time() - 3600))
    slurm.says("sacct", f"7|OUT_OF_MEMORY|n1|{TIMES}|0:0||q")
    trial.attempt(last=10, job="7")
    trial.run.write_status(Status("running", step=0))
    told = trial.told()
    assert told.slurm is not None and told.slurm.state == "OUT_OF_MEMORY"
    assert told.next == "dist-trainer submit runs/q/config.yaml slurm.options.mem=MORE"
    trial.attempt()  # by train, on this machine
    told = trial.told()
    assert told.slurm is None and told.sentence.startswith("lost: the command that trained it on n1")
    assert told.next == "dist-trainer train runs/q/config.yaml"
    slurm.says("squeue", queue_line("7", "PENDING", reason="Priority", name="q"))
    told = trial.told()
    assert told.state == "waiting" and told.slurm is not None and told.slurm.is_live


@pytest.mark.parametrize(
    ("ended", "is_told"), [("2021-01-02T04:04:05", False), ("2031-01-02T04:04:05", True)]
)
def test_an_attempt_that_left_no_line_was_not_ended_by_a_job_that_was_over(
    trial: Trial, slurm: FakeSlurm, ended: str, is_told: bool
) -> None:
    trial.make()
    add_job(trial.run, Submission("7", script="slurm/0001.sbatch", time=1.0))
    slurm.says("sacct", f"7|FAILED|n1|2021-01-02T03:04:05|{ended}|2021-01-02T03:04:05|1:0||q")
    trial.run.new_fence({"pid": 1, "host": "n1", "time": time.time()})
    trial.run.write_status(Status("running"))
    told = trial.told()
    assert (told.slurm is not None) is is_told
    assert told.next.startswith(f"dist-trainer {'submit' if is_told else 'train'} ")
