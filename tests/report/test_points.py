"""A journal becomes curves: each step once, peaks kept, whatever is torn passed over and told."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.report.points import Curve, read
from tests.report.runs import make_run, resumed, train


def test_a_step_that_was_done_again_is_shown_once_with_the_last_attempts_value(tmp_path: Path) -> None:
    journal = read(resumed(tmp_path).journal_path(0))
    loss = journal.curves["train/loss"]
    assert loss.steps.tolist() == list(range(10, 201, 10))
    first, second = loss.values[:10], loss.values[10:]
    assert first.tolist() == [1 / step for step in range(10, 101, 10)], (
        "the first attempt's, up to the checkpoint"
    )
    assert second.tolist() == [3 / step for step in range(110, 201, 10)], "the second's, from there on"
    assert journal.rewound == 3 and journal.problems == []
    assert [event["step"] for event in journal.events["saved"]] == [50, 100, 150, 200]


def test_what_a_resume_took_back_is_not_shown_before_it_is_done_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train(run, 0, 160)
    train(run, 100, 130, attempt=2, level=3.0)
    journal = read(run.journal_path(0))
    loss, measured = journal.curves["train/loss"], journal.curves["val/loss"]
    assert loss.steps.tolist() == list(range(10, 131, 10)) and loss.last == 3 / 130
    assert measured.steps.tolist() == [50, 100] and journal.rewound == 6
    train(run, 0, 20, attempt=3)
    journal = read(run.journal_path(0))
    assert journal.curves["train/loss"].steps.tolist() == [10, 20] and "val/loss" not in journal.curves


def test_all_events_are_counted_where_only_the_newest_are_kept(tmp_path: Path) -> None:
    line = {"kind": "saved", "time": 1.0, "attempt": 1, "step": 1}
    (tmp_path / "rank-0.jsonl").write_text((json.dumps(line) + "\n") * 4500)
    journal = read(tmp_path / "rank-0.jsonl")
    assert journal.counts["saved"] == 4500 and len(journal.events["saved"]) < 4000


def test_a_million_steps_become_few_points_and_no_peak_is_lost() -> None:
    steps = np.arange(1_000_000)
    values = np.sin(steps / 1e5)
    values[[123_456, 765_432]] = 50.0, -50.0
    thin = Curve(steps, values).thinned()
    assert len(thin.steps) < 700
    assert {50.0, -50.0} <= set(thin.values) and {0, 999_999} <= set(thin.steps)
    assert thin.values[thin.steps == 123_456] == 50.0
    assert (np.diff(thin.steps) > 0).all()


def test_numbers_that_no_axis_can_show_are_kept_apart() -> None:
    curve = Curve(np.arange(5), np.array([1.0, math.nan, math.inf, -1e308, 2.0]))
    assert curve.thinned().values.tolist() == [1.0, 2.0]


def test_a_torn_journal_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train(run, 0, 30)
    with run.journal_path(0).open("ab") as file:
        file.write(b'\x00\xff{"half\n[1, 2]\n{"kind": "metrics", "step": 40, "val')
    journal = read(run.journal_path(0))
    assert journal.curves["train/loss"].steps.tolist() == [10, 20, 30]
    assert journal.problems == [
        "journal/rank-0.jsonl: its last line was not written to the end",
        "journal/rank-0.jsonl: 2 lines cannot be read",
    ]


def test_no_journal_and_an_empty_one_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    assert read(path).problems == ["journal/rank-0.jsonl is missing: there are no curves"]
    path.write_bytes(b"")
    assert (read(path).curves, read(path).problems) == ({}, [])


def test_more_metrics_than_a_page_takes_are_cut_and_told(tmp_path: Path) -> None:
    values = {f"m{number}": 1.0 for number in range(300)}
    line = {"kind": "metrics", "step": 1, "values": values, "time": 1.0, "attempt": 1}
    (tmp_path / "rank-0.jsonl").write_text(json.dumps(line) + "\n")
    journal = read(tmp_path / "rank-0.jsonl")
    assert len(journal.curves) == 200 and "more than 200 metrics" in journal.problems[0]


@pytest.mark.parametrize("number", [1, 2, 599, 600, 601, 5000])
def test_any_number_of_points_can_be_thinned(number: int) -> None:
    steps = np.arange(number) ** 2
    thin = Curve(steps, np.ones(number)).thinned()
    assert (thin.steps[0], thin.steps[-1]) == (steps[0], steps[-1])
