"""What stands beside the curves: attempts and the time between, phases, slow ranks, what differs, which figures."""

import re
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.report import facts, points, ranks
from dist_trainer.report.attempts import time_line
from dist_trainer.report.drawing import KINDS, LINES, draw_figure, draw_scatter, draw_series
from dist_trainer.report.figures import Figure, Line, figures, show_number
from dist_trainer.report.make import make
from dist_trainer.report.place import default_folder
from dist_trainer.report.ranks import read_phases, step_times
from dist_trainer.report.settings import differences
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.parameters import parameters
from dist_trainer.training.phases import PHASES
from tests.report.runs import NOW, add_phases, end, finished, make_run, resumed, start, train


def test_attempts_have_causes_and_the_time_in_between() -> None:
    lines = [
        {"event": "start", "attempt": 1, "time": 100.0, "first_step": 0, "world_size": 2, "nodes": ["n1"]},
        {"event": "end", "attempt": 1, "time": 160.0, "last_step": 40, "cause": "SIGUSR2", "exit_code": 0},
        {"event": "requeue", "attempt": 1, "time": 161.0, "cause": "preempted", "job": "7"},
        {"event": "start", "attempt": 2, "time": 400.0, "first_step": 40, "world_size": 2, "job": "7"},
        {"event": "start", "attempt": 3, "time": 500.0, "first_step": 40, "world_size": 4},
        {
            "event": "end",
            "attempt": 3,
            "time": 530.0,
            "cause": "failed",
            "exit_code": 1,
            "error": "no\nmemory",
        },
        {"event": "start", "attempt": 4, "time": 600.0, "first_step": 40, "world_size": 4},
    ]
    line = time_line(
        lines, [{"time": 150.0}], last_heard={2: 450.0, 4: 620.0}, begun={}, saves=1, is_running=True
    )
    assert [each.kind for each in line.attempts] == ["asked", "bad", "bad", "open"]
    assert [each.cause for each in line.attempts] == [
        "preempted",
        "died without a word",
        "failed",
        "training",
    ]
    assert [each.waited_s for each in line.attempts] == [None, 240.0, 50.0, 70.0]
    assert [each.lasted_s for each in line.attempts] == [60.0, 50.0, 30.0, 20.0]
    assert line.attempts[2].error == "no memory" and line.saved == [150.0]
    assert line.sentence == "4 attempts: 3 min of training, 6 min between them; 1 checkpoint saved."


def test_an_attempt_that_was_lost_lasted_until_it_was_last_heard_of_and_not_until_the_next_began() -> None:
    lost = {"last_step": None, "exit_code": None, "cause": "node failure"}  # slurm/lost_attempts.py
    lines = [
        {"event": "start", "attempt": 1, "time": 100.0, "first_step": 0, "world_size": 2},
        {"event": "end", "attempt": 1, "time": 9000.0, **lost},
        {"event": "start", "attempt": 2, "time": 9001.0, "first_step": 0, "world_size": 2},
        {"event": "end", "attempt": 2, "time": 9500.0, **lost},
    ]
    line = time_line(lines, [], last_heard={1: 160.0}, begun={}, saves=1, is_running=True)
    first, second = line.attempts
    assert (first.lasted_s, first.end, first.cause) == (60.0, None, "node failure")
    assert (second.waited_s, second.lasted_s) == (8841.0, 0.0) and not second.is_open
    assert line.trained_s == 60.0 and first.kind == "bad"
    lines[1]["cause"] = "cancelled"
    cancelled = time_line(lines, [], last_heard={}, begun={}, saves=1, is_running=False).attempts[0]
    assert cancelled.kind == "asked", "by somebody's scancel"


def test_a_run_that_never_began_has_a_sentence_too() -> None:
    assert (
        time_line([], [], last_heard={}, begun={}, saves=1, is_running=False).sentence
        == "No attempt was begun yet."
    )


def test_attempts_that_failed_before_their_first_step_are_shown_and_are_no_time_in_training(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    for number, ago in enumerate((1000, 700, 400, 100), start=1):
        run.new_fence({"time": NOW - ago})
        if number < 3:
            end(run, number, "failed", ago=ago - 60, code=1, error="no module named model")
    start(run, 5, ago=50)
    found = facts.read(run)
    assert [(each.number, each.cause, each.trained) for each in found.time_line.attempts] == [
        (1, "failed", False),
        (2, "failed", False),
        (3, "died without a word", False),
        (4, "died without a word", False),
        (5, "died without a word", True),
    ]
    assert [each.start for each in found.time_line.attempts[:3]] == [NOW - 1000, NOW - 700, NOW - 400]
    assert found.time_line.attempts[1].waited_s == 240.0 and found.time_line.trained_s == 0.0
    assert "5 attempts: 0 s of training" in found.time_line.sentence
    assert found.time_line.sentence.endswith("; 0 checkpoints saved; 4 have not come to train.")
    assert found.world_size == 3
    text = make([run], default_folder([run])).page.read_text()
    assert "no module named model" in text and ">None" not in text.replace(">None were made", "")


def test_an_attempt_that_only_starts_is_open() -> None:
    line = time_line([], [], last_heard={}, begun={1: 100.0}, saves=0, is_running=True)
    assert [(each.cause, each.kind) for each in line.attempts] == [("starting", "open")]
    assert line.sentence == "One attempt: 0 s of training; 0 checkpoints saved; it has not come to train."


def test_phases_have_shares_and_the_slowest_of_three_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert read_phases(run.path) is None
    add_phases(run)
    phases = read_phases(run.path)
    assert phases is not None and (phases.ranks, phases.steps) == (3, (11, 20))
    assert sum(row.share for row in phases.rows) == pytest.approx(1)
    forward = phases.rows[1]
    assert (forward.name, forward.median_ms, forward.slowest_ms) == (
        "forward",
        pytest.approx(3),
        pytest.approx(4),
    )
    assert (forward.slowest_rank, forward.share) == (1, pytest.approx(2 / 21))
    assert phases.whole.slowest_ms == pytest.approx(42)


def test_the_phases_are_those_that_a_run_measures() -> None:
    assert ranks.PHASES == PHASES, "a copy: the module that measures imports torch, which no page needs"


def test_the_slowest_rank_is_compared_with_the_median_over_the_whole_run(tmp_path: Path) -> None:
    times = step_times(points.read(finished(tmp_path).journal_path(0)).curves)
    assert times is not None
    assert (times.median_ms, times.slowest_ms) == (pytest.approx(10), pytest.approx(12))
    assert (times.worst_step, times.worst_times) == (50, pytest.approx(1.3))
    assert step_times({}) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"steps": [1, 2]}', '{"steps": [5, 2], "ranks": []}', '{"steps": 1, "ranks": [{}]}'],
)
def test_phases_that_no_run_wrote_are_told_and_not_shown(tmp_path: Path, text: str) -> None:
    run = finished(tmp_path)
    (run.path / "profile" / "phases.json").write_text(text)
    found = facts.read(run)
    assert found.phases is None
    assert any(problem.startswith("profile/phases.json cannot be read") for problem in found.problems)


def test_only_keys_with_other_values_differ_and_no_secret_is_shown(tmp_path: Path) -> None:
    settings = [
        parameters(finished(tmp_path, name, lr=lr).config_path.read_text())
        for name, lr in (("a", 0.1), ("b", 0.2))
    ]
    del settings[1]["model.target"]
    rows = {row.key: list(row.values) for row in differences(settings)}
    assert rows == {
        "optimizer.lr": ["0.1", "0.2"],
        "model.target": ["dist_trainer.models.MLP", "not set"],
    }
    assert "hunter22secret" not in str(settings)


def test_figures_put_train_and_val_together_and_the_loss_first() -> None:
    def curve(*values: float) -> points.Curve:
        return points.Curve(np.arange(len(values)), np.array(values))

    of_a = {"train/loss": curve(3, 2, 1), "val/loss": curve(3, 2), "epoch": curve(0, 1), "zeta": curve(1, 2)}
    of_b = {"val/loss": curve(2, 1), "test/loss": curve(1), "val/accuracy": curve(0.1, 0.2)}
    found, left_out = figures([of_a, of_b])
    assert ([figure.name for figure in found], left_out) == (["loss", "accuracy", "zeta"], 0)
    assert [(line.run, line.part, line.style) for line in found[0].lines] == [
        (0, "train", "dashed"),
        (0, "val", "solid"),
        (1, "val", "solid"),
    ]
    assert not found[0].is_log
    assert figures([{"train/loss": curve(1e3, 1, 1, 1)}])[0][0].is_log
    assert figures([{f"m{number:02}": curve(1, 2) for number in range(30)}])[1] == 6


def test_every_run_is_drawn_in_the_colour_of_its_legend() -> None:
    lines = [Line(run, "", points.Curve(np.arange(3), np.arange(3.0))) for run in range(8)]
    svg = draw_figure(Figure("loss", lines), list("abcdefgh")).svg
    drawn = re.findall(r"stroke: var\((--line-\d)\); stroke-width: 1.8", svg)
    assert drawn == [f"--line-{run}" for run in range(8)]
    assert not {*LINES} & {*KINDS.values()}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.97222, "0.9722"), (1234.5, "1,234"), (1e-9, "1e-09"), (0.0, "0"), (float("nan"), "NaN"), (None, "–")],
)
def test_numbers_are_shown_with_four_digits(value: float | None, shown: str) -> None:
    assert show_number(value) == shown


def test_the_facts_of_a_resumed_run_are_found(tmp_path: Path) -> None:
    found = facts.as_json(facts.read(resumed(tmp_path)))
    assert (found["state"], found["rewound_steps"], found["problems"]) == ("finished", 3, [])
    assert [each["cause"] for each in found["attempts"]] == ["died without a word", "finished"]
    assert found["metrics"]["train/loss"] == {"points": 20, "last": 3 / 200, "step": 200}
    assert found["results"] == {"test/loss": 0.01}


def test_what_is_no_number_to_json_is_a_word(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        journal.metrics(1, {"train/loss": float("nan")})
    found = facts.as_json(facts.read(run))
    assert (found["results"], found["metrics"]["train/loss"]["last"]) == ({"train/loss": "NaN"}, "NaN")


def test_a_configuration_that_would_grow_beyond_any_memory_is_not_followed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    bomb = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    run.config_path.write_text("\n".join(bomb))
    found = facts.read(run)
    assert (found.settings, found.config_yaml) == ({}, "")
    assert any(problem.startswith("config.yaml cannot be read") for problem in found.problems)


def test_pictures_of_the_largest_and_smallest_numbers_are_drawn() -> None:
    values = np.array([[1e308, -1e308, 5e-324, np.nan, np.inf, 1e17]]).T
    steps = np.array([-(1 << 62), 0, 1, 2, 3, 1 << 62])
    chosen, _ = figures([{"m": points.Curve(steps, values[:, 0])}])
    for drawn in (draw_figure(chosen[0], ["a"]), draw_series(values, values), draw_scatter(values, -values)):
        assert drawn.svg.startswith("<svg") and drawn.png.startswith(b"\x89PNG")


def test_an_unfinished_run_shows_what_it_measured_last(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start(run, 1, ago=100)
    train(run, 0, 100)
    end(run, 1, "failed", ago=10, code=1, error="CUDA out of memory")
    found = facts.as_json(facts.read(run))
    assert found["results"] == {"val/loss": 0.02, "val/accuracy": 0.99}
    assert found["attempts"][0]["error"] == "CUDA out of memory"
