"""Submitting to a real cluster: what SLURM makes of the script, and that the job runs the code that was sent."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.run_folder import RunFolder
from dist_trainer.slurm.cluster_options import known_options
from dist_trainer.slurm.submissions import jobs_of, last_job
from tests.cluster.cluster import Cluster, slurm, wait_for
from tests.cluster.project import Project, Trial

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
REPOSITORY = Path(__file__).parents[2]
QUICK = (
    "train.epochs=null",
    "train.steps=4",
    "train.eval_every_epochs=null",
    "data.test=null",
    "tracking.uri=null",
)
ONE_NODE = ("slurm.nodes=1", "slurm.options.cpus-per-task=1")
ODD = 'my pro\'ject $(touch canary) `touch canary`; "x" #1'


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> Iterator[Project]:
    yield Project.create(tmp_path / "project", cluster)


def ended(trial: Trial, state: str = "COMPLETED") -> Trial:
    assert trial.project.cluster.wait_for_end(trial.job, timeout_s=90) == state, trial.told()
    return trial


def run_named(project: Project, name: str) -> Trial:
    trial = Trial(project, RunFolder.open(project.folder / "runs" / name))
    project.cluster.adopt(trial.job)
    return trial


def test_the_quickstart_is_submitted_and_waited_for(project: Project) -> None:
    words = [str(REPOSITORY / "configs" / "quickstart.yaml"), str(REPOSITORY / "slurm" / "local.yaml")]
    said = project.command("submit", *words, "train.epochs=2", "tracking.uri=null", "--wait", "--json")
    shown = json.loads(said)
    assert (shown["run"], shown["state"], shown["exit_code"]) == ("quickstart", "finished", 0)
    trial = run_named(project, "quickstart")
    assert shown["job"] == trial.job
    assert trial.run.read_status().results["test/accuracy"] > 0.8
    assert "quickstart: finished at step" in (trial.run.path / "slurm" / f"{trial.job}_0_log.out").read_text()
    assert "is finished" in project.command("submit", *words, "train.epochs=2", "tracking.uri=null")


def test_waiting_ends_with_the_code_of_the_run(project: Project) -> None:
    words = ["submit", "train.yaml", "name=fails", *QUICK, *ONE_NODE]
    said = project.command(*words, "model.fail=no such luck", "--wait", code=1)
    run_named(project, "fails")
    assert "submitted as job" in said


def test_submitting_returns_at_once(project: Project) -> None:
    began = time.monotonic()
    trial = project.submit("quick", *QUICK, *ONE_NODE)
    took_s = time.monotonic() - began
    print(f"submitting took {took_s:.1f} s")
    assert took_s < 30, "torch is imported once, on two cores that others use too"
    ended(trial)


def test_odd_names_reach_slurm_as_they_are(tmp_path: Path, cluster: Cluster) -> None:
    """In the working folder's name, and in values; none of it becomes shell or another option."""
    project = Project.create(tmp_path / ODD, cluster)
    odd = json.dumps(f"{ODD} \\ #SBATCH --exclusive")
    before = set(project.folder.iterdir())
    trial = project.submit("odd", *QUICK, *ONE_NODE, f"slurm.options.comment={odd}", "slurm.options.nice=3")
    shown = slurm("scontrol", "show", "job", trial.job)
    values = dict(re.findall(r"^ +(Comment|WorkDir|StdOut|Command)=(.*?) ?$", shown, re.MULTILINE))
    assert values["Comment"] == f"{ODD} \\ #SBATCH --exclusive"
    assert values["WorkDir"] == str(project.folder)
    assert values["StdOut"] == f"{trial.run.path}/slurm/{trial.job}_0_log.out"
    assert values["Command"] == f"{trial.run.path}/slurm/0001.sbatch"
    assert re.search(r"\bNice=3\b", shown) and re.search(r"\bOverSubscribe=OK\b", shown)
    assert re.search(r"\bJobName=odd\b", shown) and re.search(r"\bRequeue=1\b", shown)
    ended(trial)
    assert trial.run.read_status().state == "finished"
    after = {path.name for path in set(project.folder.iterdir()) - before}
    assert after <= {"runs", "__pycache__"}
    assert not list(tmp_path.rglob("canary"))


def test_what_a_dry_run_prints_is_what_slurm_has(project: Project) -> None:
    words = ["submit", "train.yaml", "name=same", *QUICK, *ONE_NODE, "slurm.options.hold=true"]
    shown = subprocess.run(
        [sys.executable, "-m", "dist_trainer.cli", *words, "--dry-run"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not (project.folder / "runs" / "same").exists()
    trial = project.submit("same", *words[3:])
    assert slurm("scontrol", "write", "batch_script", trial.job, "-").rstrip("\n") == shown.rstrip("\n")


@pytest.mark.parametrize("snapshot", [True, False], ids=["copied", "no snapshot"])
def test_code_that_changes_after_the_submission_changes_the_run_only_without_a_copy(
    snapshot: bool, project: Project
) -> None:
    (project.folder / "lib").mkdir()
    (project.folder / "lib" / "net.py").write_text("from recipe import Net\n")
    words = [
        *QUICK,
        *ONE_NODE,
        "model.target=lib.net.Net",
        "slurm.options.hold=true",
    ]
    trial = project.submit("kept", *words, *([] if snapshot else ["--no-snapshot"]))
    for name in ("recipe.py", "lib/net.py"):
        (project.folder / name).write_text("raise RuntimeError('changed since')\n")
    slurm("scontrol", "release", trial.job)
    ended(trial, "COMPLETED" if snapshot else "FAILED")
    assert (last_job(trial.run) or pytest.fail()).code == ("code/0001" if snapshot else None)
    assert ("changed since" in trial.told()) is not snapshot


def test_relative_paths_are_those_of_the_folder_the_command_was_given_in(project: Project) -> None:
    """The code is a copy elsewhere; data, marks and the like are still here."""
    project.hold("data")
    trial = project.submit("paths", *QUICK, *ONE_NODE)
    project.wait_until_reached("data")
    project.let_go("data")
    ended(trial)


def test_a_job_can_submit(project: Project, cluster: Cluster) -> None:
    """With SLURM's variables of another job, of another size, all around it."""
    words = ["submit", "train.yaml", "name=inner", *QUICK, "slurm.options.cpus-per-task=1", "slurm.time=3"]
    command = f"cd {project.folder} && {sys.executable} -m dist_trainer.cli {' '.join(words)}"
    outer = cluster.submit(command, "--nodes=1", "--ntasks=2", "--export=ALL,RANK=3,SRUN_CPUS_PER_TASK=2")
    assert cluster.wait_for_end(outer) == "COMPLETED", cluster.output(outer)
    trial = ended(run_named(project, "inner"))
    shown = cluster.show(trial.job)
    assert (shown["NumNodes"], shown["NumCPUs"], shown["TimeLimit"]) == ("2", "2", "00:03:00")
    starts = [line for line in trial.run.attempts() if line["event"] == "start"]
    assert [(line["nodes"], line["world_size"]) for line in starts] == [(["n1", "n2"], 2)]


def test_the_cores_of_a_task_reach_srun(project: Project) -> None:
    trial = ended(project.submit("cores", *QUICK, "slurm.nodes=1", "slurm.options.cpus-per-task=2"))

    def step_cores() -> str:
        words = ("sacct", "--noheader", "--parsable2", "--format=JobID,AllocCPUS", f"--jobs={trial.job}")
        lines = dict(line.split("|") for line in slurm(*words).splitlines())
        return lines.get(f"{trial.job}.0", "")

    wait_for(
        lambda: step_cores() == "2", timeout_s=30, what=lambda: f"two cores of the step: {step_cores()!r}"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("slurm.partition=nope", r"slurm\.partition is refused by SLURM \(nope\): .*[Pp]artition"),
        ("slurm.nodes=6", "is refused by SLURM.*: "),
        ("slurm.options.gres=gpu:4", r"slurm\.options\.gres is refused by SLURM \(gpu:4\)"),
        ("slurm.options.gpu-per-node=4", "is no option of this cluster's sbatch; did you mean gpus-per-node"),
        ("slurm.options.cpus-per-task=512", "is refused by SLURM"),
        ("slurm.srun_options.cpu_bind=none", "must be written cpu-bind"),
    ],
)
def test_what_the_cluster_cannot_do_is_an_error_before_anything_is_made(
    value: str, said: str, project: Project
) -> None:
    told = project.command("submit", "train.yaml", "name=no", *QUICK, value, code=2)
    assert re.search(said, told), told
    assert re.search(r"^(command line|train\.yaml(:\d+)?): ", told, re.MULTILINE), told
    assert not (project.folder / "runs" / "no").exists()


def test_a_partition_that_is_down_takes_jobs_and_their_wait_is_said(
    project: Project, cluster: Cluster
) -> None:
    slurm("scontrol", "update", "PartitionName=short_grace", "State=DOWN")
    try:
        trial = project.submit("waits", *QUICK, *ONE_NODE, "slurm.partition=short_grace")
        assert cluster.state(trial.job) == "PENDING"
        told = project.command("submit", "train.yaml", "name=waits", *QUICK, *ONE_NODE, code=2)
        assert f"job {trial.job} is PENDING" in told
    finally:
        slurm("scontrol", "update", "PartitionName=short_grace", "State=UP")


def test_the_options_that_sbatch_names_are_read(cluster: Cluster) -> None:
    known_options.cache_clear()
    assert {"account", "gres", "mem", "constraint", "gpus-per-node", "extra-node-info"} <= known_options(
        "sbatch"
    )
    assert {"label", "mpi", "overlap"} <= known_options("srun")


def test_of_two_submissions_at_once_one_is_refused(project: Project) -> None:
    words = ["submit", "train.yaml", "name=twice", *QUICK, *ONE_NODE, "slurm.options.hold=true"]
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "dist_trainer.cli", *words],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [command.communicate(timeout=90) for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 2, 2], said
    trial = run_named(project, "twice")
    assert [entry.job for entry in jobs_of(trial.run)] == [trial.job]
    assert slurm("squeue", "--noheader", "--name=twice", "--format=%i").split() == [trial.job]
    for command, (_, error) in zip(commands, said, strict=True):
        if command.returncode:
            assert "is being submitted by pid" in error or f"job {trial.job} is PENDING" in error


# the scripts beside the launcher


def script(project: Project, path: str, *words: str, **variables: str) -> str:
    """Run one as a user with the environment activated does."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        [str(REPOSITORY / path), *words],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_launch_slurm(project: Project) -> None:
    local = str(REPOSITORY / "slurm" / "local.yaml")
    said = script(project, "launch/slurm.sh", "train.yaml", "name=script", *QUICK, PROFILE=local, NODES="2")
    assert "submitted as job" in said
    trial = ended(run_named(project, "script"))
    assert project.cluster.show(trial.job)["NumNodes"] == "2"


def test_launch_slurm_sweep(project: Project, cluster: Cluster) -> None:
    words = ["train.yaml", "name=a", *QUICK, "slurm.nodes=1", "--grid", "seed=0:2", "--name", "grid"]
    profile = project.folder / "profile.yaml"
    profile.write_text("slurm: {options: {cpus-per-task: 1}}\nlaunch: {device: cpu}\n")
    script(project, "launch/slurm_sweep.sh", *words, PROFILE=str(profile), PARALLEL="1")
    runs = [RunFolder.open(project.folder / "runs" / f"grid-000{number}") for number in range(2)]
    jobs = [(last_job(run) or pytest.fail()).job for run in runs]
    cluster.adopt(jobs[0].partition("_")[0])
    for job, run in zip(jobs, runs, strict=True):
        assert cluster.wait_for_end(job, timeout_s=120) == "COMPLETED", Trial(project, run).told()
        assert run.read_status().state == "finished"


def test_the_plain_batch_script(project: Project, cluster: Cluster) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sbatch", "--parsable", "--time=5", "--cpus-per-task=1"]
    words = ["train.yaml", "name=plain", *QUICK]
    done = subprocess.run(
        [*command, str(REPOSITORY / "slurm" / "train.sbatch"), *words],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    job = done.stdout.strip()
    cluster.adopt(job)
    log = project.folder / f"slurm-{job}.out"
    assert cluster.wait_for_end(job, timeout_s=90) == "COMPLETED", log.read_text()
    run = RunFolder.open(project.folder / "runs" / "plain")
    assert run.read_status().state == "finished"
    (start,) = [line for line in run.attempts() if line["event"] == "start"]
    assert (start["nodes"], start["world_size"]) == (["n1", "n2"], 2)


def test_the_plain_batch_script_survives_a_preemption(project: Project, cluster: Cluster) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["train.yaml", "name=plain", "data.train.sample_s=0.1", "tracking.uri=null"]
    done = subprocess.run(
        ["sbatch", "--parsable", "--time=5", str(REPOSITORY / "slurm" / "train.sbatch"), *words],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    job = done.stdout.strip()
    cluster.adopt(job)
    folder = project.folder / "runs" / "plain"
    wait_for((folder / "run.json").exists, timeout_s=60, what=lambda: "the run's folder")
    trial = Trial(project, RunFolder.open(folder))
    trial.wait_for_step(20)
    cluster.preempt(job)
    project.hurry()
    cluster.release(job)
    assert cluster.wait_for_end(job, timeout_s=120) == "COMPLETED", trial.told()
    assert trial.run.read_status().state == "finished"
    assert trial.requeues == ["preempted"]


@pytest.mark.parametrize("profile", ["cpu", "gpu", "local"])
def test_a_profile_reads_well(profile: str, project: Project) -> None:
    """What a larger cluster has is asked for; this one says that it has not got it, and nothing else is wrong."""
    path = str(REPOSITORY / "slurm" / f"{profile}.yaml")
    words = ["submit", "train.yaml", path, "name=a", "data.global_batch_size=16", "--dry-run"]
    told = project.command(*words, code=0 if profile == "local" else 2)
    assert ("refused by SLURM" in told) is (profile != "local"), told
