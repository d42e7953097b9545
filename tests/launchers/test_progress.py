"""What is shown of a run's heartbeat and journal."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from dist_trainer.launchers import progress
from dist_trainer.launchers.progress import Position, Progress
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import Heartbeat
from dist_trainer.tracking.journal import Journal


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw at every tick."""
    monkeypatch.setattr(progress, "_DRAW_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)


def write_some(run: RunFolder, *, total: int = 62_500, step: int = 12_345) -> None:
    beat = Heartbeat(run.heartbeat_path(0), rank=0, attempt=1)
    beat.beat(step, "train")
    beat.close()
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        journal.event(
            "started", first_step=0, total_steps=total, steps_per_epoch=100, world_size=3, device="cuda:0"
        )
        journal.metrics(
            step,
            {"train/loss": 0.12345, "epoch": 1.23, "samples_per_s": 123_456.0, "data_wait_share": 0.034},
        )
        journal.metrics(step, {"val/loss": 0.5, "val/accuracy": 0.75})


def test_a_file_gets_plain_lines(run: RunFolder, at_once: None) -> None:
    out = io.StringIO()
    shown = Progress(run, Console(file=out, width=80))
    write_some(run)
    shown.tick()
    shown.close()
    assert out.getvalue().splitlines() == [
        "training 62500 steps with 3 ranks on cuda",
        "step 12345: val/loss 0.5, val/accuracy 0.75",
        "step 12345/62500, epoch 1.2, loss 0.1235, 123k samples/s, data 3%",
    ]


def test_a_training_that_ends_before_its_configuration_does_is_shown_with_its_own_steps(
    run: RunFolder, at_once: None
) -> None:
    out = io.StringIO()
    shown = Progress(run, Console(file=out, width=80), total_steps=101)
    write_some(run, total=102, step=50)
    shown.tick()
    shown.close()
    first, *_, last = out.getvalue().splitlines()
    assert first == "training 101 steps with 3 ranks on cuda" and last.startswith("step 50/101, ")


def test_a_terminal_of_80_columns_gets_one_line_with_a_bar(run: RunFolder, at_once: None) -> None:
    out = io.StringIO()
    shown = Progress(run, Console(file=out, width=80, force_terminal=True, color_system=None))
    write_some(run)
    shown.tick()
    shown.close()
    lines = [line for line in out.getvalue().replace("\r", "\n").split("\n") if "12345/62500" in line]
    assert lines
    plain = lines[-1].split("\x1b[2K")[-1]
    assert len(plain) <= 80
    for part in ("train", "━━━", "12345/62500", "ep 1.2", "loss 0.1235", "123k/s", "data 3%"):
        assert part in plain, plain


def test_what_an_earlier_attempt_left_is_not_shown(run: RunFolder, at_once: None, tmp_path: Path) -> None:
    write_some(run)
    run.new_fence({})
    out = io.StringIO()
    shown = Progress(run, Console(file=out, width=80))
    shown.tick()
    shown.close()
    assert out.getvalue() == ""


def test_the_time_left_follows_the_recent_speed() -> None:
    position = Position(total_steps=1000)
    for second in range(100):
        position.at(second if second < 50 else 50 + (second - 50) * 10, float(second))
    assert position.remaining_s == pytest.approx((1000 - 540) / 10, rel=0.1)


def test_a_resume_that_goes_back_gives_no_wrong_speed() -> None:
    position = Position(total_steps=1000)
    position.at(500, 0.0)
    position.at(510, 1.0)
    position.at(480, 2.0)
    assert position.remaining_s is None


def test_a_full_disk_under_the_run_folder_is_said_once_each_time(
    run: RunFolder, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    shown = Progress(run, Console(file=out, width=80))
    look = os.statvfs

    def full(path: str) -> os.statvfs_result:
        fields = list(look(path))
        fields[3] = fields[4] = 0  # blocks that are free, for root and for others
        return os.statvfs_result(fields)

    for see in (full, full, look, full):
        monkeypatch.setattr(os, "statvfs", see)
        shown.tick()
    shown.close()
    assert out.getvalue().count(f"warning: the disk of {run.path} is full: training goes on") == 2
