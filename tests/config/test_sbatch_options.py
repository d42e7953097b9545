"""What a configuration may ask of SLURM, as far as it can be said without a cluster."""

from typing import Any

import pytest

from dist_trainer.config.sbatch_options import given, signal_before_s, slurm_conflicts, time_limit_s
from dist_trainer.config.schema import SlurmConfig


def problems(**section: Any) -> list[str]:
    found = slurm_conflicts(SlurmConfig.model_validate(section))
    return [f"{conflict.key} {conflict.message}" for conflict in found]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"options": {"nodes": 3}}, "slurm.options.nodes belongs to the launcher: give slurm.nodes"),
        ({"options": {"partition": "a"}}, "give slurm.partition"),
        ({"options": {"time": 3}}, "give slurm.time"),
        ({"options": {"array": "0-3"}}, "dist-trainer sweep makes an array"),
        ({"options": {"output": "x"}}, "dist-trainer logs"),
        ({"options": {"ntasks": 4}}, "launch.workers_per_node"),
        ({"options": {"wrap": "rm"}}, "dist-trainer submit sends the job"),
        ({"options": {"requeue": True}}, "requeued where that helps"),
        ({"srun_options": {"kill-on-bad-exit": 0}}, "it is always on"),
        ({"srun_options": {"export": "NONE"}}, "launch.env"),
        ({"options": {"gpus_per_node": 2}}, "slurm.options.gpus_per_node must be written gpus-per-node"),
        ({"options": {"--mem": 2}}, "slurm.options.--mem must be written mem"),
        ({"options": {"mem\n#SBATCH -n9": 2}}, "slurm.options must have names as in sbatch --help"),
        ({"options": {"mem; rm": 2}}, "slurm.options must have names as in sbatch --help"),
        ({"options": {"mem": " "}}, "slurm.options.mem must not be empty; null leaves it out"),
        ({"options": {"comment": "x" * 4001}}, "must be at most 4000 characters, got 4001"),
        ({"options": {"signal": "B:USR2@10"}}, "slurm.options.signal must be USR2@ and seconds"),
        ({"options": {"signal": "TERM@10"}}, "must be USR2@ and seconds before the time limit"),
        ({"options": {"signal": "USR2@60"}, "time": 1}, "must come after the start: slurm.time is 60 s"),
        ({"time": "1 day"}, "slurm.time must be minutes, 24:00:00 or 2-12:00:00, got '1 day'"),
        ({"time": "2:00"}, "got '2:00', which SLURM reads as minutes and seconds: write 2:00:00 or 120"),
        ({"time": "1:5"}, "write 1:05:00 or 65"),
        ({"time": 0}, "slurm.time must be more than 0, got 0, which SLURM takes for no limit"),
        ({"time": "0-00:00"}, "slurm.time must be more than 0"),
        ({"options": {"N": 2}}, "slurm.options.N must be written by its long name, nodes: give slurm.nodes"),
        ({"options": {"n": 2}}, "its long name, ntasks: each node has one task"),
        ({"options": {"-p": "a"}}, "its long name, partition: give slurm.partition"),
        ({"options": {"A": "physics"}}, "slurm.options.A must be written by its long name, account"),
        ({"srun_options": {"K": 0}}, "kill-on-bad-exit: it is always on"),
        ({"time": "١٢"}, "slurm.time must be minutes"),
        ({"setup": ["a\rb"]}, "slurm.setup.0 must be lines of shell"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_what_to_give_instead(
    section: dict[str, Any], said: str
) -> None:
    (problem,) = problems(**section)
    assert said in problem


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\t"])
@pytest.mark.parametrize("key", ["partition", "options.comment", "srun_options.cpu-bind"])
def test_no_value_holds_a_line_break_or_another_control_character(key: str, character: str) -> None:
    section, _, name = key.partition(".")
    value = f"a{character}#SBATCH --exclusive"
    (problem,) = problems(**{section: {name: value} if name else value})
    assert problem.startswith(f"slurm.{key} must be one line of text without control characters, got ")


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"time": 30, "partition": "a,b", "options": {"exclusive": True, "mem": "4G", "nice": None}},
        {"options": {"signal": "SIGUSR2@30", "comment": "it's `x` $(y) #"}, "time": "1-0"},
        {
            "srun_options": {"cpu-bind": "cores", "label": True},
            "setup": ["module load a", "if x; then\n y\nfi"],
        },
    ],
)
def test_what_a_cluster_may_be_asked_for(section: dict[str, Any]) -> None:
    assert problems(**section) == []


def test_true_is_a_flag_and_what_is_off_is_left_out() -> None:
    assert given({"exclusive": True, "x11": False, "mem": None, "nice": 0}) == {
        "exclusive": True,
        "nice": "0",
    }


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (30, 1800),
        ("30", 1800),
        ("1:02:03", 3723),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("2-12:00:05", 216005),
        (None, None),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time: str | int | None, seconds: int | None) -> None:
    assert time_limit_s(SlurmConfig(time=time)) == seconds


@pytest.mark.parametrize(
    ("time", "options", "seconds"),
    [
        (None, {}, 120),
        ("12:00:00", {}, 120),
        (2, {}, 30),
        ("0:00:02", {}, 1),
        (2, {"signal": "USR2@50"}, 50),
        (None, {"signal": "USR2@600"}, 600),
    ],
)
def test_the_signal_comes_two_minutes_early_and_in_a_short_job_in_its_last_quarter(
    time: str | int | None, options: dict[str, Any], seconds: int
) -> None:
    assert signal_before_s(SlurmConfig(time=time, options=options)) == seconds
