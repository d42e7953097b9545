"""The submit command: what is refused and why, what is left behind, and what is said. SLURM is a fake one here."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config.check import Imported
from dist_trainer.config.load import load_config
from dist_trainer.errors import ConfigError, DistTrainerError, UsageError
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.slurm import cluster_options
from dist_trainer.slurm import submit as module
from dist_trainer.slurm.script import Unanswered
from dist_trainer.slurm.submissions import jobs_of
from dist_trainer.slurm.submit import Wishes, submit
from dist_trainer.slurm.submit_checks import gpus_of_node, job_is_over, workers_at_least
from tests.launchers.processes import Command
from tests.slurm.fake_slurm import FakeSlurm, config_text, fake_slurm

__all__ = ["fake_slurm"]
pytestmark = pytest.mark.timeout(60)
Send = Callable[..., int]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are given in, with a configuration."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.yaml").write_text(config_text())
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Imported:
    """What the targets' import finds, without the seconds that torch takes."""
    found = Imported([[]], [])
    monkeypatch.setattr(module, "import_in_child", lambda configs, folder: found)
    return found


@pytest.fixture
def send(fake_slurm: FakeSlurm, project: Path, imports: Imported) -> Send:
    """Submit the project's configuration with these values."""

    def start(*values: str, files: tuple[str, ...] = ("config.yaml",), **wishes: Any) -> int:
        return submit(load_config(files, values), Wishes(**wishes))

    return start


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, but for the lock that is made where somebody looks whether it is held."""
    paths = [path for path in folder.rglob("*") if path.name != "run.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def run_of(project: Path) -> RunFolder:
    return RunFolder.open(project / "runs" / "small")


# what is sent


def test_a_run_is_sent_once_and_the_next_commands_are_named(
    send: Send, project: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send("slurm.nodes=2") == 0
    run = run_of(project)
    (job,) = jobs_of(run)
    assert (job.job, job.nodes, job.code, job.script) == ("4711", 2, "code/0001", "slurm/0001.sbatch")
    assert (run.path / "slurm" / "0001.sbatch").read_text() == fake_slurm.sent
    assert run.info().working_folder == project
    said = capsys.readouterr().out
    assert "small: submitted as job 4711 (2 nodes)" in said
    assert str(run.path) in said and "2031-01-02 03:04, as SLURM estimates" in said
    assert "dist-trainer logs small -f" in said and "dist-trainer jobs\n" in said
    assert [path.name for path in (project / "runs").iterdir()] == ["small"]


def test_a_dry_run_prints_what_is_sent_and_makes_nothing(
    send: Send, project: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(project)
    assert send(dry_run=True) == 0
    shown = capsys.readouterr().out
    assert content(project) == before
    assert fake_slurm.sent is None
    send()
    assert fake_slurm.sent == shown
    (project / "new.py").write_text("")
    fake_slurm.queue("4711", "COMPLETED")
    capsys.readouterr()
    send(dry_run=True)
    shown = capsys.readouterr().out
    send()
    assert fake_slurm.sent == shown and "code/0002" in shown


def test_one_json_object_and_nothing_else(
    send: Send, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send("slurm.options.cpus-per-task=2", as_json=True)
    run = project / "runs" / "small"
    assert json.loads(capsys.readouterr().out) == {
        "run": "small",
        "job": "4711",
        "folder": str(run),
        "state": "submitted",
        "code": "code/0001",
        "estimated_start": "2031-01-02T03:04:05",
        "script": f"{run}/slurm/0001.sbatch",
    }


def test_without_a_snapshot_the_job_runs_the_folder_as_it_is(
    send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    send(snapshot=False)
    assert "CODE_FOLDER" not in (fake_slurm.sent or "")
    assert jobs_of(run_of(project))[0].code is None
    assert not (project / "runs" / "small" / "code").exists()


def test_nothing_of_a_job_around_the_command_reaches_the_new_one(
    send: Send, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "RANK", "DIST_TRAINER_FENCE", "SBATCH_SIGNAL"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
    send()
    there = fake_slurm.environment()
    assert there["SLURM_CONF"] == "/somewhere/slurm.conf"
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "RANK", "DIST_TRAINER_FENCE", "SBATCH_SIGNAL"} & set(there)


# which run


def test_a_run_that_is_finished_is_not_sent(
    send: Send, project: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    send()
    fake_slurm.queue("4711", "COMPLETED")
    run_of(project).write_status(Status("finished", step=4))
    (fake_slurm.folder / "sent").unlink()
    assert send() == 0
    assert "run small is finished: --fresh trains it anew" in capsys.readouterr().out
    assert fake_slurm.sent is None
    assert send("train.epochs=2") == 0
    assert len(jobs_of(run_of(project))) == 2


def test_a_finished_run_that_is_to_be_longer_says_so_until_its_job_has_trained_it(
    send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    send()
    run, ended = run_of(project), Status("finished", step=4, results={"val/loss": 0.5})
    fake_slurm.queue("4711", "COMPLETED")
    run.write_status(ended)
    fake_slurm.refuse("Requested node configuration is not available", when="send")
    with pytest.raises(ConfigError):
        send("train.epochs=2")
    assert run.read_status() == ended, "what was not sent changes nothing"
    assert "epochs: 1" in run.config_path.read_text()
    (fake_slurm.folder / "send-refused").unlink()
    fake_slurm.say("answer", "4712")
    assert send("train.epochs=2") == 0
    status = run.read_status()
    assert (status.state, status.reason) == ("stopped", "a longer training was asked for")
    assert (status.step, status.results, status.run_again) == (4, {"val/loss": 0.5}, True)
    assert status.time < jobs_of(run)[-1].time, "no word of the new job"


HOLD = """
import sys
from dist_trainer.run_folder import RunFolder
with RunFolder.open(sys.argv[1]).lock(job="4711"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("fresh", [False, True])
def test_a_job_that_is_over_does_not_keep_a_run_by_processes_on_a_lost_node(
    fresh: bool, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    send()
    fake_slurm.queue("4711", "NODE_FAIL")
    command, pipe = [sys.executable, "-c", HOLD, str(run_of(project).path)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as lost:
        assert lost.stdout
        assert lost.stdout.readline() == b"held\n"
        fake_slurm.say("answer", "4712")
        assert send("train.epochs=2", fresh=fresh) == 0
        assert lost.poll() is None
        lost.kill()
    assert jobs_of(run_of(project))[-1].job == "4712"


def test_a_job_is_over_only_by_slurms_word(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_is_over("4711")
    fake_slurm.queue("4711", "RUNNING")
    assert not job_is_over("4711")
    fake_slurm.queue("4711", "NODE_FAIL")
    assert job_is_over("4711")
    (fake_slurm.folder / "squeue").write_text("#!/bin/bash\necho connect failure >&2\nexit 1\n")
    assert not job_is_over("4711")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_that_a_job_has_is_not_sent_again(
    state: str, fresh: bool, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    send()
    before = content(project)
    fake_slurm.queue("4711", state)
    with pytest.raises(UsageError) as refused:
        send(fresh=fresh)
    said = str(refused.value)
    assert said.startswith(f"run small is submitted already: job 4711 is {state} (Resources)")
    assert "dist-trainer cancel small ends it" in said
    assert content(project) == before


def test_a_run_whose_job_is_dead_is_sent_again(send: Send, project: Path, fake_slurm: FakeSlurm) -> None:
    send()
    fake_slurm.queue("4711", "CANCELLED")
    fake_slurm.say("answer", "4712")
    send()
    assert [job.job for job in jobs_of(run_of(project))] == ["4711", "4712"]
    assert [job.code for job in jobs_of(run_of(project))] == ["code/0001", "code/0001"]
    assert [job.script for job in jobs_of(run_of(project))][-1] == "slurm/0002.sbatch"


def test_a_run_that_is_trained_here_is_not_sent(send: Send, project: Path) -> None:
    run = RunFolder.create(project / "runs" / "small", config_text(), working_folder=project)
    with run.lock(), pytest.raises(UsageError, match="is being trained by pid"):
        send()


def test_a_changed_configuration_is_refused_as_in_training(send: Send, project: Path) -> None:
    send()
    run = run_of(project)
    run.journal_path(0).write_text('{"event": "checkpoint", "step": 2}\n')
    (run.checkpoints / "step-000000002-f0001").mkdir()
    (run.checkpoints / "step-000000002-f0001" / "COMMIT.json").write_text("{}")
    before = content(project)
    with pytest.raises(DistTrainerError):
        send("optimizer.lr=0.5")
    assert content(project) == before


def test_a_run_that_goes_on_has_its_new_configuration_and_keeps_the_old_one(
    send: Send, project: Path
) -> None:
    send()
    send("train.epochs=3", "slurm.time=5")
    run = run_of(project)
    assert "epochs: 3" in run.config_path.read_text()
    assert (run.path / "config-1.yaml").exists()


def test_a_fresh_run_is_begun_beside_the_old_one(send: Send, project: Path, fake_slurm: FakeSlurm) -> None:
    send()
    (run_of(project).path / "mark").touch()
    send(fresh=True)
    assert (project / "runs" / "small-old-1" / "mark").exists()
    assert not (project / "runs" / "small" / "mark").exists()
    assert "code/0001" in (fake_slurm.sent or "")


# what stands against it; nothing is left behind


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            ["slurm.options.gpu-per-node=4"],
            "is no option of this cluster's sbatch; did you mean gpus-per-node?",
        ),
        (["slurm.options.excl=true"], "slurm.options.excl is no option of this cluster's sbatch"),
        (["slurm.srun_options.cpu-bnd=none"], "is no option of this cluster's srun; did you mean cpu-bind?"),
        (["slurm.setup=[module load a]"], "slurm.setup.0 is shell from the command line"),
        (
            ["slurm.nodes=3", "launch.workers_per_node=2"],
            "must be at least the world size, 6 (3 nodes with 2",
        ),
        (["slurm.nodes=2", "slurm.options.gpus-per-node=4"], "must be at least the world size, 8"),
        (["checkpoint.folder=nowhere://bucket"], "checkpoint.folder cannot take checkpoints: "),
        (["checkpoint.folder=/proc/1/nothing"], "checkpoint.folder cannot take checkpoints: "),
    ],
)
def test_what_is_refused_before_slurm_is_asked(
    values: list[str], said: str, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    before = content(project)
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        send(*values)
    assert str(refused.value).startswith(("command line: ", "config.yaml:"))
    assert {name for name in content(project) if name != "runs"} == set(before)
    assert fake_slurm.sent is None


def test_an_sbatch_that_does_not_answer_about_an_option_is_no_error(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("sbatch", "srun"):
        cluster_options.known_options(command)
    monkeypatch.setattr(cluster_options, "_HELP_S", 0.0)
    assert send("slurm.options.hint=nomultithread") == 0


def test_an_option_that_help_leaves_out_is_asked_of_sbatch_itself(send: Send) -> None:
    assert send("slurm.options.hint=nomultithread") == 0


@pytest.mark.parametrize(
    ("words", "values", "key"),
    [
        (
            "Batch job submission failed: Invalid partition name specified",
            ["slurm.partition=x"],
            "slurm.partition",
        ),
        ("Requested time limit is invalid (missing or exceeds some limit)", ["slurm.time=9"], "slurm.time"),
        ("Invalid account or account/partition combination specified", [], "slurm.options.account"),
        ("Invalid qos specification", ["slurm.options.account=me"], "slurm.options.qos"),
        ("Invalid generic resource (gres) specification", ["slurm.options.gpus-per-node=2"], "gpus-per-node"),
        ("Requested node configuration is not available", [], "slurm is refused"),
    ],
)
def test_slurms_own_refusal_is_quoted_at_the_key_it_is_about(
    words: str, values: list[str], key: str, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.refuse(words)
    with pytest.raises(ConfigError) as refused:
        send(*values)
    assert words in str(refused.value) and key in str(refused.value)
    assert not (project / "runs" / "small").exists()


def test_a_target_that_cannot_be_imported_is_an_error_with_its_place(
    fake_slurm: FakeSlurm, project: Path
) -> None:
    """The real import, in a process of its own."""
    with pytest.raises(ConfigError, match=r"command line: model\.target .*Linear"):
        submit(load_config(["config.yaml"], ["model.target=torch.nn.Linaer"]), Wishes())
    assert not (project / "runs" / "small").exists()


@pytest.mark.parametrize("late", [False, True], ids=["asked first", "given the job"])
@pytest.mark.parametrize("kind", ["new", "there", "fresh"])
def test_a_refusal_leaves_everything_as_it_was(
    kind: str, late: bool, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    if kind != "new":
        send()
        (project / "new.py").write_text("")
    before = content(project)
    fake_slurm.refuse("Batch job submission failed: no", when="send" if late else "test")
    with pytest.raises(ConfigError, match="is refused by SLURM: Batch job submission failed: no"):
        send("train.epochs=7", fresh=kind == "fresh")
    assert {name: text for name, text in content(project).items() if name != "runs"} == {
        name: text for name, text in before.items() if name != "runs"
    }


def test_a_disk_that_is_full_leaves_nothing(
    send: Send, project: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "code/0001/x")

    monkeypatch.setattr(module, "write_snapshot", full)
    with pytest.raises(UsageError, match=r"small cannot be written: code/0001/x no space left on device"):
        send()
    assert list((project / "runs").iterdir()) == []
    assert fake_slurm.sent is None


def test_a_job_that_cannot_be_noted_is_taken_back(
    send: Send, project: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "add_job", full)
    monkeypatch.setattr(module.scheduler, "cancel", cancelled.append)
    with pytest.raises(UsageError, match="no space left"):
        send()
    assert cancelled == ["4711"]
    assert list((project / "runs").iterdir()) == []


def test_an_answer_that_never_came_is_looked_for_in_the_queue(
    send: Send, project: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.refuse("Batch job submission failed: Socket timed out on send/recv operation", when="send")
    with pytest.raises(Unanswered, match="Socket timed out"):
        send()
    assert run_of(project).config_path.exists(), "SLURM may have the job: what it needs stays"
    monkeypatch.setattr(time, "time", lambda: 1925089445.0)  # about when the fake job came in
    fake_slurm.queue("99", "PENDING")
    fake_slurm.show("99", project / "elsewhere" / "small" / "slurm" / "0002.sbatch")
    with pytest.raises(Unanswered):
        send()
    assert not jobs_of(run_of(project)), "a run in another folder has the same name"
    fake_slurm.show("99", run_of(project).path / "slurm" / "0003.sbatch")
    assert send() == 0
    assert jobs_of(run_of(project))[-1].job == "99"


def test_a_silent_controller_is_no_refusal_and_leaves_nothing(
    send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.refuse("Unable to contact slurm controller (connect failure)", when="send")
    with pytest.raises(DistTrainerError, match=r"SLURM does not answer: .*connect failure"):
        send()
    assert list((project / "runs").iterdir()) == []


def test_of_two_at_once_one_wins(send: Send, project: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.say("before", "sleep 1.5")
    ended: list[object] = []

    def start() -> None:
        try:
            ended.append(send())
        except UsageError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 in ended
    (refused,) = [end for end in ended if end != 0]
    assert re.search(r"is being submitted by pid \d+ on .* just now", str(refused))
    assert len(jobs_of(run_of(project))) == 1


# shell lines


@pytest.mark.parametrize(
    ("profile", "accepted"),
    [
        ("slurm: {setup: [module load a]}\nlaunch: {env: {A: b}}\n", True),
        ("slurm: {setup: [module load a]}\n", True),
        ("slurm: {setup: [module load a]}\nseed: 3\n", False),
    ],
)
def test_shell_lines_come_from_a_profile_alone(
    profile: str, accepted: bool, send: Send, project: Path, fake_slurm: FakeSlurm
) -> None:
    (project / "profile.yaml").write_text(profile)
    files = ("config.yaml", "profile.yaml")
    if accepted:
        send(files=files)
        assert "\nmodule load a\n" in (fake_slurm.sent or "")
        with pytest.raises(
            ConfigError, match=r"^command line: slurm\.setup\.0 is shell from the command line"
        ):
            send("slurm.setup.0=rm -r", files=files)
        return
    with pytest.raises(ConfigError, match=r"^profile.yaml:1: slurm\.setup\.0 is shell in a file .* seed"):
        send(files=files)


# what is only said


@pytest.mark.timeout(60)  # MLflow's own client asks again for some minutes
def test_mlflow_that_does_not_answer_is_a_warning(
    send: Send, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_WORD", "secret")
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        send(f"tracking.uri=http://me:${{env:MLFLOW_WORD}}@127.0.0.1:{port}", "slurm.options.cpus-per-task=2")
        assert capsys.readouterr().err == ""
    send(f"tracking.uri=http://me:${{env:MLFLOW_WORD}}@127.0.0.1:{port}")
    said = capsys.readouterr().err
    assert f"MLflow at http://127.0.0.1:{port} does not answer from here: " in said
    assert "secret" not in said


def test_a_database_in_a_folder_that_is_none_is_a_warning(
    send: Send, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").touch()
    send("tracking.uri=sqlite:///file/mlflow.db")
    assert f"{project}/file is no folder" in capsys.readouterr().err


def test_who_asks_for_no_cores_is_told_that_there_is_one(
    send: Send, capsys: pytest.CaptureFixture[str]
) -> None:
    send(dry_run=True)
    assert "gives each node's task one: see slurm.options.cpus-per-task" in capsys.readouterr().err
    send("slurm.options.cpus-per-task=2", dry_run=True)
    assert capsys.readouterr().err == ""


# a machine without SLURM


@pytest.fixture
def no_slurm(project: Path, imports: Imported, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PATH", "/nowhere")
    return project


def test_without_slurm_one_line_says_so(no_slurm: Path) -> None:
    with pytest.raises(DistTrainerError, match=r"^no SLURM answers on this machine; slurm/local/up .*$"):
        submit(load_config(["config.yaml"]), Wishes())
    assert content(no_slurm).keys() == {"config.yaml"}


def test_without_slurm_a_dry_run_says_what_was_not_checked(
    no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(load_config(["config.yaml"], ["slurm.options.madeup=1"]), Wishes(dry_run=True)) == 0
    said = capsys.readouterr()
    assert "options, partition and limits were not checked" in said.err
    assert "--madeup=1" in said.out
    assert content(no_slurm).keys() == {"config.yaml"}


# how many workers there will be


@pytest.mark.parametrize(
    ("options", "nodes", "gpus"),
    [
        ({"gpus-per-node": 4}, 1, 4),
        ({"gpus-per-node": "a100:2,v100:1"}, 1, 3),
        ({"gpus-per-task": "h100:8"}, 1, 8),
        ({"gres": "gpu"}, 1, 1),
        ({"gres": "gpu:2,shard:4"}, 1, 2),
        ({"gres": "gpu:a100:2"}, 1, 2),
        ({"gpus": 8}, 2, 4),
        ({"gres": "license:4"}, 1, 0),
        ({}, 1, 0),
    ],
)
def test_the_gpus_of_a_node_are_read_from_the_options(
    options: dict[str, Any], nodes: int, gpus: int, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config_text(slurm={"options": options, "nodes": nodes}))
    config = load_config([tmp_path / "config.yaml"]).config
    assert gpus_of_node(config.slurm) == gpus
    assert workers_at_least(config) == min(4, gpus or 1)


# the command itself


def test_the_command_takes_its_options_and_gives_errors_as_others_do(
    fake_slurm: FakeSlurm, project: Path, command: Callable[..., Command]
) -> None:
    words = [str(project / "config.yaml"), "--dry-run", "--nodes", "2", "--json", "--no-snapshot"]
    shown = command("-m", "dist_trainer.cli", "submit", *words)
    assert shown.finish() == 0, shown.stderr
    assert "#SBATCH --nodes=2" in json.loads(shown.stdout)["script"]
    refused = command("-m", "dist_trainer.cli", "submit", *words, "slurm.options.foo=1")
    assert refused.finish() == 2
    assert json.loads(refused.stdout)["state"] == "failed"
    assert "slurm.options.foo is no option of this cluster's sbatch" in refused.stderr
    assert "Traceback" not in refused.stderr
