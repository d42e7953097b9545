"""What is read out of sinfo's lines: limits, GPUs, nodes that differ, and what is no use."""

from collections.abc import Callable

import pytest

from dist_trainer.slurm import partitions as module
from dist_trainer.slurm.partitions import Partition, best_for_training, partitions

Say = Callable[[str], list[Partition]]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Say:
    """The partitions of a cluster whose sinfo says this."""

    def say(text: str) -> list[Partition]:
        monkeypatch.setattr(module, "ask", lambda command, **options: text)
        return partitions()

    return say


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", None),
        ("n/a", None),
        ("30:00", 30),
        ("1:00:00", 60),
        ("2-12:00:00", 3600),
        ("0:30", 1),
    ],
)
def test_a_limit_is_minutes(listed: Say, limit: str, minutes: int | None) -> None:
    (found,) = listed(f"main*|up|{limit}|2|8|16000|(null)\n")
    assert found == Partition("main", True, 2, 8, 16000, 0, minutes)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("shard:8,gpu:h100:2,gpu:l4:1", 3),
        ("license:gpu:2", 0),
    ],
)
def test_gpus_are_counted_of_every_kind(listed: Say, gres: str, gpus: int) -> None:
    assert listed(f"main|up|infinite|2|8+|16000+|{gres}\n")[0].gpus == gpus


def test_of_nodes_that_differ_those_with_gpus_count_and_what_takes_no_jobs_does_not(listed: Say) -> None:
    found = listed(
        "mixed|up|infinite|40|16|64000|(null)\nmixed|up|infinite|2|64|256000|gpu:4\n"
        "all*|up|infinite|42|16|64000|(null)\ndown|down|infinite|9|16|64000|gpu:8\n"
        "empty|up|infinite|0|0|0|gpu:8\nsinfo: a warning\n"
    )
    assert [(each.name, each.gpus) for each in found] == [("all", 0), ("mixed", 4)]
    assert best_for_training(found) == found[1] and best_for_training([]) is None
