"""The batch script: what submitit makes of our options, what sbatch reads, and what bash does not run."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm import slurm as submitit_slurm

from dist_trainer.config.load import load_config
from dist_trainer.config.schema import Config, SlurmConfig
from dist_trainer.errors import DistTrainerError, UsageError
from dist_trainer.slurm import script as script_module
from dist_trainer.slurm.scheduler import SchedulerUnavailable
from dist_trainer.slurm.script import (
    Code,
    Refused,
    Unanswered,
    environment_of_job,
    make_script,
    send,
    test_only,
)
from tests.slurm.fake_slurm import FakeSlurm, config_text, fake_slurm

__all__ = ["fake_slurm"]
test_only.__test__ = False  # type: ignore[attr-defined]

HOSTILE = [
    "a b",
    'it\'s "quoted"',
    "$(touch canary)",
    "`touch canary`",
    "; touch canary;",
    "x & touch canary",
    "| touch canary",
    "> canary",
    "' ; touch canary ; '",
    '" ; touch canary ; "',
    "\\'; touch canary; \\'",
    "back\\slash\\",
    "#SBATCH --exclusive",
    "${HOME} $PATH !! ~ * ?",
    "-x --flag",
    "ünïcödé",
]


def config(tmp_path: Path, **slurm: Any) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(config_text(slurm=slurm))
    return load_config([path]).config


def script(config: Config, folder: Path, **options: Any) -> str:
    places = {"log_folder": folder / "slurm", "working_folder": folder, "arguments": [str(folder)]}
    return make_script(config, **{**places, **options})


def options(text: str) -> dict[str, str | None]:
    """The options as sbatch reads them: as written, one line each, up to the first command."""
    head = text.partition("\n# setup\n")[0].splitlines()
    lines = [line.removeprefix("#SBATCH --") for line in head if line.startswith("#SBATCH")]
    return {line.partition("=")[0]: line.partition("=")[2] if "=" in line else None for line in lines}


# what is assumed of submitit, one by one


def test_submitit_has_the_function_and_every_parameter_that_we_give() -> None:
    parameters = inspect.signature(submitit_slurm._make_sbatch_string).parameters
    assert {
        *("command", "folder", "job_name", "nodes", "ntasks_per_node", "time", "wckey", "setup", "teardown"),
        *("stderr_to_stdout", "map_count", "additional_parameters", "srun_args"),
    } <= set(parameters)


def test_submitit_leaves_out_what_is_none_and_adds_nothing_that_we_do_not_know(tmp_path: Path) -> None:
    found = options(script(config(tmp_path), tmp_path))
    assert found == {
        "chdir": str(tmp_path),
        "job-name": "small",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "output": f"{tmp_path}/slurm/%j_0_log.out",
        "requeue": None,
        "signal": "USR2@120",
    }


def test_submitit_quotes_as_a_shell_and_writes_a_flag_for_true() -> None:
    assert submitit_slurm._as_sbatch_flag("comment", "it's $(x)") == "#SBATCH --comment='it'\"'\"'s $(x)'"
    assert submitit_slurm._as_sbatch_flag("exclusive", True) == "#SBATCH --exclusive"
    assert submitit_slurm._as_sbatch_flag("gpus_per_node", 2) == "#SBATCH --gpus-per-node=2"


def test_submitit_sorts_the_options_so_that_the_same_configuration_is_the_same_script(tmp_path: Path) -> None:
    one = config(tmp_path, options={"mem": "1G", "account": "a"})
    other = config(tmp_path, options={"account": "a", "mem": "1G"})
    assert script(one, tmp_path) == script(other, tmp_path)
    assert list(options(script(one, tmp_path))) == sorted(options(script(one, tmp_path)))


def test_submitit_takes_the_signal_from_us_and_not_from_its_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "TERM")
    assert options(script(config(tmp_path, time=2), tmp_path))["signal"] == "USR2@30"


# the script as a whole


def test_the_options_of_the_configuration_are_in_the_script(tmp_path: Path) -> None:
    asked = config(
        tmp_path,
        nodes=2,
        partition="gpu",
        time="1-00:00:00",
        options={"gpus-per-node": 4, "exclusive": True, "nice": None, "x11": False, "signal": "USR2@300"},
        srun_options={"cpu-bind": "cores", "label": True},
    )
    text = script(asked, tmp_path)
    expected = {
        "nodes": "2",
        "partition": "gpu",
        "time": "1-00:00:00",
        "gpus-per-node": "4",
        "signal": "USR2@300",
    }
    assert expected.items() <= options(text).items()
    assert "exclusive" in options(text) and "nice" not in options(text) and "x11" not in options(text)
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --open-mode=append --export=ALL --cpu-bind=cores --label" in line


def test_an_array_names_its_elements_and_their_logs(tmp_path: Path) -> None:
    text = script(
        config(tmp_path), tmp_path, array=[7, 0, 1, 2, 5, 8], parallel=2, arguments=["--sweep", "x"]
    )
    assert options(text)["array"] == "0-2,5,7-8%2"
    assert options(text)["output"] == f"{tmp_path}/slurm/%A_%a_0_log.out"
    assert "/slurm/%A_%a_%t_log.out" in text
    assert options(script(config(tmp_path), tmp_path, array=range(3)))["array"] == "0-2"


def run_script(
    text: str, folder: Path, fake: FakeSlurm, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """In bash, as a node does."""
    path = folder / "job.sh"
    path.write_text(text)
    environment = {**os.environ, "PATH": fake.path, **variables}
    return subprocess.run(
        ["bash", str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_or_value_becomes_shell(name: str, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    """Every value in the script is hostile, and srun gets each of them whole."""
    folder = tmp_path / name.replace("/", "_").replace("\\", "_")
    folder.mkdir()
    asked = config(
        tmp_path,
        options={"comment": name, "account": name},
        srun_options={"cpu-bind": name},
        partition=name,
        setup=["export SET_UP=1"],
    )
    text = script(asked, folder, arguments=[str(folder), name], code=Code(folder / "code", [folder / "more"]))
    before = set(folder.iterdir())
    done = run_script(text, folder, fake_slurm)
    assert set(folder.iterdir()) - before == {folder / "job.sh"}, "something of it was run"
    assert not (tmp_path / "canary").exists()
    assert fake_slurm.srun_arguments() == [
        *("--unbuffered", "--output", f"{folder}/slurm/%j_%t_log.out"),
        *("--kill-on-bad-exit=1", "--open-mode=append", "--export=ALL", f"--cpu-bind={name}"),
        *(sys.executable, "-m", "dist_trainer.slurm.task", str(folder), name),
    ]
    there = fake_slurm.environment("srun-environment")
    assert there["DIST_TRAINER_CODE_FOLDER"] == f"{folder}/code"
    assert there["PYTHONPATH"].startswith(f"{folder}/code:{folder}/more")
    assert there["SET_UP"] == there["PYTHONSAFEPATH"] == "1"
    assert "syntax error" not in done.stderr


def test_lines_of_the_setup_cannot_add_options(tmp_path: Path) -> None:
    text = script(config(tmp_path, setup=["#SBATCH --exclusive", "a\n#SBATCH --nice=1"]), tmp_path)
    first_command = text.index("\ntrap ")
    assert "#SBATCH" in text[first_command:] and "--exclusive" not in text[:first_command]


@pytest.mark.parametrize("cores", ["", "6"])
def test_the_cores_of_a_task_reach_srun(cores: str, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    variables = {"SLURM_CPUS_PER_TASK": cores} if cores else {}
    run_script(script(config(tmp_path), tmp_path), tmp_path, fake_slurm, **variables)
    assert fake_slurm.environment("srun-environment").get("SRUN_CPUS_PER_TASK", "") == cores


def test_the_last_line_has_the_code_of_srun_and_its_own_is_that_of_the_script(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "told: $*"\nexit 42\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    fake_slurm.say("srun-code", "75")
    done = run_script(script(config(tmp_path, setup=["set -eu"]), tmp_path), tmp_path, fake_slurm)
    assert done.stdout == f"told: -m dist_trainer.slurm.task --after 75 {tmp_path}\n"
    assert done.returncode == 42


def test_the_script_outlives_the_signals_that_srun_ends_by(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    srun = fake_slurm.folder / "srun"
    srun.write_text('#!/bin/bash\nkill -USR2 "$PPID"; kill -TERM "$PPID"; sleep 0.2; exit 3\n')
    text = script(config(tmp_path), tmp_path).replace(f"{sys.executable} -m", "echo told:")
    done = run_script(text, tmp_path, fake_slurm)
    assert "--after 3" in done.stdout
    assert done.returncode == 0


def test_our_code_comes_before_what_python_imports_anyway(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    text = script(config(tmp_path), tmp_path, code=Code(tmp_path / "code"))
    run_script(text, tmp_path, fake_slurm, PYTHONPATH="/somewhere")
    assert fake_slurm.environment("srun-environment")["PYTHONPATH"] == f"{tmp_path}/code:/somewhere"
    run_script(text, tmp_path, fake_slurm, PYTHONPATH="")
    assert fake_slurm.environment("srun-environment")["PYTHONPATH"] == f"{tmp_path}/code"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"log_folder": Path("/a/100%/slurm")}, "sbatch takes % in its --output for a pattern"),
        ({"log_folder": Path("/a\\b/slurm")}, "in its --output for a pattern"),
        ({"log_folder": Path("/a\n#SBATCH --exclusive")}, "holds a control character"),
        ({"working_folder": Path("/a\nb")}, "holds a control character"),
        ({"arguments": ["/a\0b"]}, "holds a control character"),
        ({"code": Code(Path("/a:b"))}, "Python splits its path at a colon"),
    ],
)
def test_a_folder_that_no_script_can_name_is_refused(
    place: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        script(config(tmp_path), tmp_path, **place)


# what a job takes over from where it is sent


def test_a_job_takes_over_nothing_of_another_job_or_of_a_worker() -> None:
    kept = {
        "HOME": "/h",
        "SLURM_CONF": "/c",
        "SBATCH_ACCOUNT": "mine",
        "PYTHONPATH": "/p",
        "OMP_NUM_THREADS": "3",
    }
    dropped = {
        *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURMD_NODENAME", "SRUN_CPUS_PER_TASK", "PMI_RANK", "PMIX_ID"),
        *("SUBMITIT_EXECUTOR", "DIST_TRAINER_FENCE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"),
        *("MASTER_PORT", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "ROLE_NAME", "LOCAL_WORLD_SIZE"),
    }
    ours = {**kept, **dict.fromkeys(dropped, "x")}
    assert environment_of_job(ours, SlurmConfig()) == kept


def test_a_default_for_sbatch_counts_only_where_the_script_says_nothing() -> None:
    ours = {f"SBATCH_{name}": "x" for name in ("ACCOUNT", "PARTITION", "TIMELIMIT", "SIGNAL", "ARRAY_INX")}
    assert set(environment_of_job(ours, SlurmConfig())) == {
        "SBATCH_ACCOUNT",
        "SBATCH_PARTITION",
        "SBATCH_TIMELIMIT",
    }
    asked = SlurmConfig(partition="p", time=3, options={"account": "b"})
    assert environment_of_job(ours, asked) == {}


# sbatch's answers


def test_a_job_that_is_taken_has_an_id_and_its_script_is_kept_for_its_owner(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.say("answer", "815;elsewhere")
    path = tmp_path / "0001.sbatch"
    assert send("#!/bin/bash\n", path, SlurmConfig()) == "815"
    assert fake_slurm.sent == path.read_text() == "#!/bin/bash\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_refusal_is_slurms_own_words_and_leaves_no_script(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.refuse("Batch job submission failed: Invalid account", when="send")
    with pytest.raises(Refused, match=r"^Batch job submission failed: Invalid account$"):
        send("#!/bin/bash\n", tmp_path / "script", SlurmConfig())
    assert not (tmp_path / "script").exists()


def test_an_estimate_is_slurms_word(fake_slurm: FakeSlurm) -> None:
    assert test_only("#!/bin/bash\n", SlurmConfig()) == "2031-01-02T03:04:05"
    assert (fake_slurm.folder / "tried").read_text() == "#!/bin/bash\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("Unable to contact slurm controller (connect failure)", SchedulerUnavailable),
        ("_establish_config_source: failed to fetch config: no configuration source", SchedulerUnavailable),
        ("Batch job submission failed: Socket timed out on send/recv operation", Unanswered),
    ],
)
def test_silence_is_no_refusal(
    words: str, error: type[DistTrainerError], tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.refuse(words, when="send")
    with pytest.raises(error):
        send("#!/bin/bash\n", tmp_path / "script", SlurmConfig())


def test_an_estimate_that_never_came_is_no_job_that_may_have_been_taken(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.refuse("Batch job submission failed: Socket timed out on send/recv operation")
    with pytest.raises(SchedulerUnavailable, match="no job was sent"):
        test_only("#!/bin/bash\n", SlurmConfig())
    monkeypatch.setattr(script_module, "_SEND_S", 0.0)
    with pytest.raises(SchedulerUnavailable, match="did not answer within 0 s; no job was sent"):
        test_only("#!/bin/bash\n", SlurmConfig())


def test_an_answer_without_an_id_is_not_taken_for_a_job(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.say("answer", "come back later")
    with pytest.raises(Unanswered, match="come back later"):
        send("#!/bin/bash\n", tmp_path / "script", SlurmConfig())


def test_the_script_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text())
    code = """
import json, sys
from dist_trainer.slurm import submit
from dist_trainer.slurm.script import make_script
print(json.dumps(sorted({"torch", "mlflow", "submitit"} & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stdout) == []
