"""How one command is started on every node: tests/cluster/test_doctor.py starts some."""

import subprocess
from tempfile import TemporaryFile

from dist_trainer.adapters.slurm_job import SlurmJob
from dist_trainer.config.schema import SlurmConfig
from dist_trainer.slurm.on_nodes import OnNodes, srun_command

SLURM = SlurmConfig(nodes=3, partition="gpu", options={"cpus-per-task": 8, "signal": "USR2@60"})


def test_outside_a_job_srun_asks_for_what_the_run_s_job_would_be_asked_for() -> None:
    words = srun_command(SLURM, None, ["python", "-V"], minutes=5)
    assert words[0] == "srun"
    assert {"--nodes=3", "--ntasks=3", "--partition=gpu", "--cpus-per-task=8", "--time=5"} <= set(words)
    assert not any(word.startswith("--signal") for word in words)
    assert words[-2:] == ["python", "-V"]


def test_in_a_job_it_takes_all_of_its_nodes_beside_what_runs_there() -> None:
    job = SlurmJob("7", 0, "n1", 0, 2, "n[1-2]")
    words = srun_command(SLURM, job, ["python", "-V"], minutes=5)
    assert {"--nodes=2", "--ntasks=2", "--overlap"} <= set(words)
    assert not any(word.startswith(("--partition", "--time", "--cpus-per-task")) for word in words)


def test_setup_comes_before_the_command_and_is_given_no_word_of_it() -> None:
    with_setup = SLURM.model_copy(update={"setup": ["module load python", "conda activate x"]})
    words = srun_command(with_setup, None, ["python", "a b; c"], minutes=5)
    assert words[-6:] == [
        "bash",
        "-c",
        'module load python\nconda activate x\nexec "$@"',
        "bash",
        "python",
        "a b; c",
    ]


def test_a_job_that_was_granted_at_once_is_known_by_a_node_s_word_and_one_that_was_there_is_not_ours() -> (
    None
):
    with TemporaryFile() as out, TemporaryFile() as errors, subprocess.Popen(["true"]) as process:
        ours, there = (OnNodes(process, out, errors, has_own_job=each) for each in (True, False))
        assert ours.own_job is None
        for each in (ours, there):
            each.note_step("77.0")
        assert (ours.own_job, there.own_job) == ("77", None)
        errors.write(b"srun: job 78 queued and waiting for resources\n")
        errors.flush()
        assert (ours.own_job, there.own_job) == ("78", None)
