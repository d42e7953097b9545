"""A run folder with every file that a run leaves, and one of them changed."""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from dist_trainer.adapters.files import write_json
from dist_trainer.cli import app
from dist_trainer.config.load import dump_config, load_config
from dist_trainer.jobs.standing import owner_of
from dist_trainer.run_folder import RunFolder, Status, find_run
from dist_trainer.slurm.submissions import Submission, add_job, jobs_of
from dist_trainer.tracking.heartbeat import Heartbeat, read_heartbeat
from dist_trainer.tracking.journal import Journal, history, last_saved_step, metric_history, planned_steps
from dist_trainer.tracking.settings import RunSettings
from dist_trainer.tracking.sync_state import Point, SyncState, count_left
from dist_trainer.trained_code import changed_in, write_trained_code
from dist_trainer.training.time_limit import Times, read_times
from tests.faults.hostile_checkpoints import files, manifest_of, put
from tests.faults.mutations import change_bytes, change_json, change_lines, change_yaml

REPOSITORY = Path(__file__).parents[2]
FENCES = ["²²²².json", "9" * 200 + ".json", "0002", "-001.json", "00x2.json", "0003.json.tmp", "١٢٣٤.json"]
COMMANDS = [
    ["jobs"],
    ["jobs", "mine"],
    ["checkpoint", "list", "mine"],
    ["checkpoint", "verify", "mine"],
    ["logs", "mine"],
    ["explain", "mine"],
]


def make(folder: Path) -> RunFolder:
    """A run that was trained, as its folder says."""
    config = load_config([REPOSITORY / "configs" / "quickstart.yaml"], ["name=mine"]).config
    run = RunFolder.create(folder / "mine", dump_config(config), working_folder=folder)
    fence = run.new_fence({"pid": 1, "host": "here"})
    run.record({"event": "start", "attempt": fence, "time": time.time(), "nodes": ["here"]})
    with Journal(run.journal_path(0), attempt=fence, rank=0) as journal:
        journal.event("started", first_step=0, total_steps=20, steps_per_epoch=10, world_size=2, device="cpu")
        for step in range(10):
            journal.metrics(step, {"train/loss": 1.0 / (step + 1), "val/loss": float("nan")})
        journal.event("saved", step=10, checkpoint="step-000000010-f0001")
    pulse = Heartbeat(run.heartbeat_path(0), rank=0, attempt=fence)
    pulse.beat(9, "train")
    pulse.close()
    run.write_error(fence, 1, error=ValueError("the cause"), step=9, exit_code=1)
    run.log_path(fence, 0).write_text("said\n")
    run.record(
        {
            "event": "end",
            "attempt": fence,
            "time": time.time(),
            "last_step": 9,
            "cause": "failed",
            "exit_code": 1,
        }
    )
    run.write_status(Status("failed", "the cause", 9, results={"val/loss": 0.5}))
    state = SyncState("r", "e")
    state.sent("rank-0.jsonl", [Point("train/loss", 1.0, 1, 3)], 200)
    state.save(run)
    write_json(run.path / "times.json", vars(Times(2, 0.1, 0.2, {"val": 1.0}, {})))
    write_trained_code(run.path, 1, {"my_project.py": "0123456789abcdef"})
    (run.path / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "since": 1730000000.0, "job": null}')
    add_job(run, Submission("123", script="slurm/0001.sbatch"))
    content = files()
    put(run.path / "checkpoints", content, manifest_of(content))
    return run


def make_trial(folder: Path) -> Callable[[random.Random], None]:
    """One file changed, and everything that reads a run's folder."""
    runs, whole = folder / "runs", make(folder / "whole").path
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())

    def one(draw: random.Random) -> None:
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(whole, runs / "mine")
        name = draw.choice(names)
        path = runs / "mine" / name
        if draw.random() < 0.1:
            path = runs / "mine" / "fence" / draw.choice(FENCES)
            path.write_text("{}")
        elif draw.random() < 0.05:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(change(path, draw))
        for command in COMMANDS:
            done = CliRunner().invoke(app, [*command, "--runs", str(runs)])
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
        if not path.is_dir():
            _read_all(runs)

    return one


def change(path: Path, draw: random.Random) -> bytes:
    """The content of a file with something of it changed, by what kind of file it is."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        return change_lines(content, draw)
    if path.suffix == ".json" or path.name in ("run.lock", "rank-0"):
        return change_json(content, draw)
    if path.suffix == ".yaml":
        as_text = draw.random() < 0.7
        return change_yaml(content.decode(), draw).encode() if as_text else change_bytes(content, draw)
    return change_bytes(content, draw)


def _read_all(runs: Path) -> None:
    run = find_run("mine", runs)
    read_heartbeat(run.heartbeat_path(0))
    owner_of(run)
    journal = run.journal_path(0)
    history(journal), metric_history(journal, "train/loss"), last_saved_step(journal), planned_steps(journal)
    changed_in(run.path, run.info().working_folder)
    read_times(run, 3), jobs_of(run), run.attempts(), run.read_errors(1), run.highest_fence()
    count_left(run, SyncState.load(run))
    RunSettings.read(run)
    run.info(), run.read_status()
