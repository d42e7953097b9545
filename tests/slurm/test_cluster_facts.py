"""What is read out of scontrol's words for a cluster."""

import pytest

from dist_trainer.config.sbatch_options import seconds_of
from dist_trainer.slurm import cluster_facts
from dist_trainer.slurm.cluster_facts import kill_wait_s
from dist_trainer.slurm.scheduler import SchedulerUnavailable


def test_the_time_between_term_and_kill_is_the_controller_s_or_slurm_s_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_facts, "ask", lambda command: "Configuration data\nKillWait   = 45 sec\n")
    assert kill_wait_s() == 45.0

    def silent(command: list[str]) -> str:
        raise SchedulerUnavailable("no answer")

    monkeypatch.setattr(cluster_facts, "ask", silent)
    assert kill_wait_s() == 30.0


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("30:00", 1800),
        ("0:30", 30),
        ("1:00:00", 3600),
        ("1-00:00:00", 86400),
        ("1-12", 129600),
        ("UNLIMITED", None),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_one_time_is_read_the_same_everywhere(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds
