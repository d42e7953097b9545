"""The line that a plain script shows at the foot of a terminal, and the lines that it prints elsewhere."""

import io
import os
import pty
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_trainer.training import progress
from dist_trainer.training.hooks import Hook
from tests.training.small import rows, trainer

COLUMNS = 30
SHORT = {"train.epochs": 2, "data.global_batch_size": 5}  # ten steps


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Standard error is a terminal of 30 columns, and each step is drawn; what stands on it until now.

    Inside of a test, since pytest sets its own standard error when one begins.
    """
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with (
        os.fdopen(theirs, "w") as written,
        os.fdopen(ours, "rb", buffering=0) as seen,
        monkeypatch.context() as patched,
    ):
        patched.setenv("COLUMNS", str(COLUMNS))
        patched.setattr(progress, "REDRAW_EVERY_S", 0.0)
        patched.setattr("sys.stderr", written)
        yield lambda: seen.read(1 << 16).decode()


def test_a_script_on_a_terminal_shows_a_line_in_place_that_fits_it_and_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal(monkeypatch) as drawn:
        trainer(str(tmp_path), "shown", SHORT, val=rows()).fit()
        lines = drawn().split("\r\x1b[K")
    shown = [line for line in lines if line]
    assert [line.partition(",")[0] for line in shown] == [f"step {step}/10" for step in range(1, 11)]
    assert all(len(line) < COLUMNS for line in shown)
    assert shown[4].startswith("step 5/10, epoch 1.0, loss")
    assert lines[-1] == "", "nothing is left at the foot of the terminal"
    assert "step 5/10" not in capsys.readouterr().out


def test_an_error_leaves_no_line_before_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fail(Hook):
        def on_step(self, trainer: object, step: int, result: object) -> None:
            if step == 3:
                raise ValueError("on purpose")

    with terminal(monkeypatch) as drawn:
        with pytest.raises(ValueError, match="on purpose"):
            trainer(str(tmp_path), "fails", SHORT, hooks=[Fail()]).fit()
        said = drawn()
    assert "step 2/" in said and said.endswith("\r\x1b[K")


def test_a_terminal_that_is_closed_in_mid_run_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()

    class HangUp(Hook):
        def on_step(self, trainer: object, step: int, result: object) -> None:
            if step == 3:
                os.close(ours)

    with open(os.dup(theirs), "w") as written, monkeypatch.context() as patched:  # noqa: PTH123
        patched.setattr(progress, "REDRAW_EVERY_S", 0.0)
        patched.setattr("sys.stderr", written)
        made = trainer(str(tmp_path), "goes-on", SHORT, hooks=[HangUp()])
        assert made.fit().state == "finished"
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), written.fileno())  # what could not be written may go now
    os.close(theirs)


def test_a_script_trains_whatever_stands_in_the_place_of_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyTakesWords:
        def write(self, words: str) -> int:
            return len(words)

        def flush(self) -> None:
            pass

    closed = io.StringIO()
    closed.close()
    for name, given in {"none": None, "closed": closed, "own": OnlyTakesWords()}.items():
        with monkeypatch.context() as patched:
            patched.setattr("sys.stderr", given)
            assert trainer(str(tmp_path), name, SHORT).fit().state == "finished"


def test_where_standard_error_is_no_terminal_a_line_is_printed_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(str(tmp_path), "brief", SHORT).fit()
    assert "loss" not in capsys.readouterr().out, "ten seconds have not passed"
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    trainer(str(tmp_path), "long", SHORT).fit()
    said = capsys.readouterr()
    assert re.search(
        r"^step 4/10, epoch 0\.8, loss \d\.\d+, [\d,]+ samples/s, 0:00:0\d left$", said.out, re.M
    )
    assert "\x1b" not in said.out + said.err


def test_under_our_agent_which_shows_the_progress_a_worker_shows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [type(hook) for hook in trainer(str(tmp_path), "alone").hooks] == [progress.LineProgress]
    monkeypatch.setenv("DIST_TRAINER_FENCE", "1")
    assert trainer(str(tmp_path), "worker").hooks == []
