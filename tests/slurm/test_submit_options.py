"""Options of sbatch given to `submit` itself: it says how they are given."""

import pytest
from typer.testing import CliRunner

from dist_trainer.cli import app
from tests.slurm.fake_slurm import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--partition", "main"], "--partition is sbatch's: give slurm.partition=main"),
        (["-p", "main"], "-p is sbatch's: give slurm.partition=main"),
        (["--time=10"], "--time is sbatch's: give slurm.time=10"),
        (["-N", "2"], "-N is sbatch's: give slurm.nodes=2"),
        (["--mem", "4G"], "--mem is sbatch's: give slurm.options.mem=4G"),
        (["-A", "physics"], "-A is sbatch's: give slurm.options.account=physics"),
        (["--exclusive", "train.yaml"], "--exclusive is sbatch's: give slurm.options.exclusive=..."),
        (["--job-name", "a"], "--job-name belongs to the launcher: it is the run's name: name"),
    ],
)
def test_an_option_of_sbatch_says_how_it_is_given(
    options: list[str], said: str, fake_slurm: FakeSlurm
) -> None:
    done = CliRunner().invoke(app, ["submit", "train.yaml", *options])
    assert (done.exit_code, done.stderr) == (2, f"{said}\n")


@pytest.mark.parametrize("options", [["--partitoin", "main"], ["--", "-x"], ["--runs"]])
def test_what_is_none_of_sbatchs_options_is_as_wrong_as_before(
    options: list[str], fake_slurm: FakeSlurm
) -> None:
    done = CliRunner().invoke(app, ["submit", "train.yaml", *options])
    assert done.exit_code == 2 and "sbatch" not in done.stderr


def test_help_has_the_options(fake_slurm: FakeSlurm) -> None:
    done = CliRunner().invoke(app, ["submit", "--help"])
    assert done.exit_code == 0 and "--dry-run" in done.stdout
