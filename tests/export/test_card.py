"""What export.json says of a run's data."""

from dist_trainer.config.load import load_config
from dist_trainer.config.schema import Target
from dist_trainer.export.card import described_data, shown
from tests.export.runs import ROOT


def test_a_secret_is_shown_by_nobody_whatever_its_type() -> None:
    section = Target(
        target="mine.Table",
        password=12345678,
        options=[{"api_key": "abcdefgh", "rows": 3}],
        host="db",
        port=5432,
        secret=None,
    )
    assert shown(section) == {
        "target": "mine.Table",
        "password": "***",
        "options": [{"api_key": "***", "rows": 3}],
        "host": "db",
        "port": 5432,
        "secret": None,
    }


def test_the_split_of_the_rows_is_not_taken_for_the_data_sets_own() -> None:
    arrays = "{target: dist_trainer.data.Arrays, path: a.npz, split: train}"
    config = load_config(
        [ROOT / "configs" / "quickstart.yaml"], ["data.split=null", f"data.val={arrays}"]
    ).config
    assert described_data(config, "val") == {
        "split": "val",
        "dataset": {"target": "dist_trainer.data.Arrays", "path": "a.npz", "split": "train"},
    }
