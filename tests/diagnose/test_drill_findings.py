"""What a drill makes of the worst that it finds, and what it says it leaves; trainings are stand-ins."""

from pathlib import Path

import pytest

from dist_trainer.adapters.storage import Storage
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.diagnose.compare import Ending
from dist_trainer.diagnose.drill_folder import Subject, drill_in_folder
from dist_trainer.diagnose.drill_plan import Plan
from dist_trainer.diagnose.faults import FAULTS
from dist_trainer.errors import CorruptCheckpoint, StorageError
from dist_trainer.run_folder import RunFolder
from tests.training_command import CONFIG


class Training:
    """It finishes at once, whatever is done to it."""

    world_size, seconds, struck_at, started = 2, 1.0, None, 1

    def __init__(self, plan: Plan, name: str, config: Path) -> None:
        self.plan = plan
        text = dump_config(load_config([config]).config)
        self.run = RunFolder.create(plan.scratch / name, text, working_folder=plan.working_folder)

    def start(self) -> None: ...

    def wait_until_held(self) -> None: ...

    def strike(self, order: object = None) -> None: ...

    def end(self) -> None: ...

    def wait(self) -> int:
        return 0

    def left(self) -> dict[int, str]:
        return {}


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dist_trainer.diagnose.drill.Drilled", Training)
    monkeypatch.setattr("dist_trainer.diagnose.drill.ending_of", lambda run, steps: _ending(run, steps))
    (tmp_path / "run.yaml").write_text(CONFIG)
    return Subject(load_config([tmp_path / "run.yaml"]).config, tmp_path)


def _ending(run: RunFolder, steps: int) -> Ending:
    if run.path.name == "kill-in-save":
        raise CorruptCheckpoint(f"step-{steps}: model.safetensors is 3 bytes short")
    return Ending("digest", dict.fromkeys(range(1, steps + 1), 0.5))


def drilled(subject: Subject, *names: str) -> int:
    faults = [FAULTS[name] for name in names]
    return drill_in_folder(
        subject, faults, runs=Path("runs"), steps=None, workers=None, keep=False, as_json=False
    )


def test_a_last_checkpoint_that_cannot_be_read_fails_its_fault_and_stays_to_be_looked_at(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drilled(subject, "kill-in-save", "mlflow-down") == 1
    said = capsys.readouterr().out
    worst = "FAILED: finished, and what it saved last cannot be read: step-12: model.safetensors is 3 bytes"
    assert f"kill-in-save       {worst}" in said
    assert "mlflow-down        passed; " in said and "run does not survive kill-in-save" in said
    (kept,) = Path("runs/.drills").iterdir()
    assert f"the drill's runs: {kept}" in said and (kept / "kill-in-save" / "run.json").is_file()


def test_checkpoints_that_cannot_be_cleared_away_are_named_without_the_password(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(self: Storage, name: str) -> None:
        raise StorageError(f"{self.url}: cannot be reached")

    monkeypatch.setattr(Storage, "delete_folder", away)
    monkeypatch.setenv("BUCKET", "s3://ada:hunter2@bucket/here")
    config = load_config(["run.yaml"], ["checkpoint.folder=${env:BUCKET}"]).config
    assert drilled(Subject(config, subject.working_folder), "mlflow-down") == 0
    said = capsys.readouterr()
    assert not Path("runs/.drills").exists() and "runs/.drills" not in said.out
    lines = said.err.splitlines()
    assert len(lines) == 2, "one for the untouched training, one for the other"
    for line in lines:
        assert line.startswith("warning: the drill's checkpoints are left in s3://***@bucket/here/drills/")
        assert "cannot be reached" in line and "hunter2" not in line
