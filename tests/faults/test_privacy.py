"""What real runs leave: nothing that others may read, and no secret anywhere. Their ports: on loopback alone."""

import json
import random
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from tests.faults.ledger import record, times
from tests.faults.private_project import canaries, files_below, found_in, make_project
from tests.launchers.processes import Command, wait_for
from tests.ports import LOOPBACK, listeners
from tests.slurm.fake_slurm import FakeSlurm

pytestmark = pytest.mark.timeout(240)
COMMAND = "import os; os.umask(0); from dist_trainer.cli import main; main()"


@dataclass(frozen=True)
class Project:
    """A project in which runs were trained by the real command, and what that said."""

    folder: Path
    variables: dict[str, str]
    secrets: dict[str, str]
    said: dict[str, str]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(self, *arguments: str, **variables: str) -> Command:
        """The command under a umask that hides nothing."""
        environment = {**self.variables, **variables}
        return Command(sys.executable, "-c", COMMAND, *arguments, folder=self.folder, environment=environment)

    def finish(self, command: Command, name: str) -> int:
        try:
            code = command.finish(200)
        finally:
            command.end()
        self.said[name] = command.stdout + command.stderr
        return code


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With one run that finished, with MLflow, and one that failed, with an MLflow that is not there."""
    folder = tmp_path_factory.mktemp("private") / "project"
    make_project(folder)
    made = Project(folder, *canaries(), {})
    passing = made.start("train", "config.yaml")
    values = ["name=failing", "tracking.uri=http://me:${env:MLFLOW_WORD_SECRET}@127.0.0.1:9/"]
    failing = made.start("train", "config.yaml", *values, FAILS="1")
    codes = [made.finish(passing, "passing"), made.finish(failing, "failing")]
    assert codes == [0, 1], made.said
    return made


def weights(run: Path) -> str:
    """The digest of the final weights."""
    newest = max((run / "checkpoints").iterdir())
    digest: str = json.loads((newest / "MANIFEST.json").read_text())["files"]["model.safetensors"]["sha256"]
    return digest


def test_everything_of_a_run_is_for_its_owner_alone_whatever_the_umask(project: Project) -> None:
    found = {}
    for name in ("private", "failing"):
        for path in [project.run(name), *project.run(name).rglob("*")]:
            mode = path.stat().st_mode & 0o777
            if mode != (0o700 if path.is_dir() else 0o600):
                found[str(path)] = oct(mode)
    assert not found
    names = {path.name for path in project.run("private").rglob("*")}
    assert names > {
        "rank-0.jsonl",
        "rank-2",
        "rank-2.json",
        "COMMIT.json",
        "mlflow-sync.json",
        "agent-0.log",
        "0001.json",
    }
    assert oct((project.folder / "mlflow.db").stat().st_mode & 0o777) == "0o600"


def test_no_secret_is_in_what_runs_leave_and_say(project: Project) -> None:
    secrets = project.secrets
    left = found_in(project.folder, secrets) + found_in(project.folder.parent / "disk", secrets)
    said = [
        f"{name} on the screen of {run}"
        for run, text in project.said.items()
        for name, value in secrets.items()
        if value in text
    ]
    record(
        "secrets", tried=len(secrets), lost=len({line.split()[0] for line in left + said}), note="in two runs"
    )
    assert not left + said
    assert len(list(files_below(project.folder))) > 5
    assert (project.folder / "mlartifacts").is_dir()
    config = (project.run("private") / "config.yaml").read_text()
    assert "${env:MODEL_API_KEY}" in config
    log = (project.run("failing") / "logs" / "attempt-0001" / "rank-1.log").read_text()
    assert "RuntimeError: cannot reach postgresql://***@db.invalid/x" in log


def test_no_secret_is_in_what_is_given_to_slurm(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSlurm(tmp_path / "fake-slurm")
    shutil.copytree(project.folder, tmp_path / "project", ignore=shutil.ignore_patterns("runs", "ml*"))
    (tmp_path / "project" / ".env.json").write_text(json.dumps(project.variables))
    for name, value in {**project.variables, "PATH": fake.path}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "project")
    for arguments in (["--dry-run"], []):
        done = CliRunner().invoke(app, ["submit", "config.yaml", "train.profile=null", *arguments])
        assert done.exit_code == 0, done.output
        assert not [name for name, value in project.secrets.items() if value in done.output]
    run = tmp_path / "project" / "runs" / "private"
    assert (run / "code" / "0001" / "net.py").exists() and (run / "slurm" / "0001.sbatch").exists()
    assert not found_in(run, project.secrets)
    assert {oct(path.stat().st_mode & 0o077) for path in [run, *run.rglob("*")]} == {"0o0"}


def test_ports_of_one_node_are_on_loopback_and_garbage_does_not_stop_training(project: Project) -> None:
    gate = project.folder / "gate"
    command = project.start("train", "config.yaml", "name=attacked", "tracking.uri=null", GATE=str(gate))
    try:
        wait_for(
            lambda: (
                len(list(project.folder.glob("gate.reached-*"))) == 3 or command.process.poll() is not None
            ),
            timeout_s=120,
        )
        found = listeners({command.pid, *command.others()})
        assert found, "the store and three ranks listen somewhere"
        assert {address for address, _ in found} <= LOOPBACK
        ports = sorted({port for _, port in found})
        with ExitStack() as stack:
            sent = sum(stack.enter_context(attack(port)) for port in ports)
            gate.touch()
            code = project.finish(command, "attacked")
        same = code == 0 and weights(project.run("attacked")) == weights(project.run("private"))
        record(
            "garbage at each port", tried=sent, lost=int(not same), note=f"connections to {len(ports)} ports"
        )
        assert code == 0, project.said["attacked"]
        assert same
    finally:
        command.end()


@contextmanager
def attack(port: int) -> Iterator[int]:
    """Random bytes, requests, half a message, connections left open, one that drips; how many connections."""
    draw, held = random.Random(port), []
    many = times(40, 1000)
    stop = threading.Event()
    try:
        for number in range(many):
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            held.append(connection)
            connection.settimeout(0.2)
            text = [
                draw.randbytes(draw.choice([1, 8, 64, 5000])),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\0" * 8,
                b"",
            ]
            try:
                connection.sendall(text[number % 4])
            except OSError:
                continue
            if number % 3 == 0:
                connection.close()
        drip = threading.Thread(target=_drip, args=(port, stop))
        drip.start()
        yield many
        stop.set()
        drip.join()
    finally:
        stop.set()
        for connection in held:
            connection.close()


def _drip(port: int, stop: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        while not stop.wait(0.1):
            try:
                connection.sendall(b"\x01")
            except OSError:
                return
