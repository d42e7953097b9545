"""Any byte, line or value of a run's folder may be another one: the report says so, or shows it, and never fails."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.report import facts
from dist_trainer.report.figures import figures
from dist_trainer.report.page import Page, render
from dist_trainer.run_folder import RunFolder
from tests.faults.hostile_runs import change, make
from tests.report.runs import add_phases, predicted
from tests.report.test_predictions import CLASSES

TRIALS = 60
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_a_report_is_made_of_any_folder(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    add_phases(whole)
    pictures = {"sample_row": np.arange(5), "sample_input": np.zeros((5, 1, 8, 8))}
    predicted(whole, {**CLASSES, **pictures}, classes=["a", "b", "c"])
    names = sorted(str(path.relative_to(whole.path)) for path in whole.path.rglob("*") if path.is_file())
    for seed in range(TRIALS):
        draw, run = random.Random(seed), RunFolder(tmp_path / "runs" / "mine")
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(whole.path, run.path)
        path = run.path / draw.choice(names)
        path.write_bytes(change(path, draw))
        found = facts.read(run)
        json.dumps(facts.as_json(found), allow_nan=False)
        figures([found.journal.curves])
        assert render(Page([found], [], 0, [None], [[None] * len(found.predictions)])), (seed, path)
