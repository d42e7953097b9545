"""What export.json says of a run's data."""

from dist_trainer.config.schema import Target
from dist_trainer.export.card import shown


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
