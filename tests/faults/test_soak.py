"""What a soak makes of the rows: sums, costs, the page, and an end that says whether anything was lost."""

import json
import re
from pathlib import Path

import pytest

from tests.faults import ledger, soak, table
from tests.page_tables import PAGE, put_into

TRIAL = {"missed": False, "untouched_s": 4.0, "useful_s": 1.0}
LINES = [
    {"fault": "rot", "tried": 200, "lost": 0, "note": ""},
    {"fault": "kill", "tried": 10, "lost": 1, "note": "FAULT_SEED=3"},
    {"fault": "rot", "tried": 100, "lost": 0, "note": "5 s"},
    {"trial": {**TRIAL, "fault": "SIGKILL of a rank", "wall_s": 5.0, "steps_redone": 2}},
    {"trial": {**TRIAL, "fault": "SIGKILL of a rank", "wall_s": 7.0, "steps_redone": 5}},
    {"trial": {**TRIAL, "fault": "SIGTERM", "wall_s": 8.0, "steps_redone": 0, "missed": True}},
]


def test_rows_of_one_fault_are_summed() -> None:
    assert table.lost(LINES) == 1
    assert table.fault_table(LINES) == [
        "| fault | times tried | lost |",
        "| ----- | ----------: | ---: |",
        "| kill  |          10 |    1 |",
        "| rot   |         300 |    0 |",
        "| all   |         310 |    1 |",
    ]


def test_what_a_random_fault_cost_is_a_mean_over_those_that_hit() -> None:
    rows = table.trial_table(LINES)
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]
    assert cells[0] == list(table.TRIALS)
    assert cells[2:] == [
        ["SIGKILL of a rank", "2", "3.5", "5", "2.0", "17%"],
        ["all", "2", "3.5", "5", "2.0", "17%"],
    ]


def test_what_is_recorded_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    assert table.read_lines(path) == []
    monkeypatch.setenv(ledger.LEDGER, str(path))
    ledger.record("rot", tried=200, lost=1)
    ledger.record_trial({"seed": 7, "fault": "SIGTERM"})
    assert table.read_lines(path) == [
        {"fault": "rot", "tried": 200, "lost": 1, "note": ""},
        {"trial": {"seed": 7, "fault": "SIGTERM"}},
    ]


def test_tables_are_put_between_their_markers_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults -->\n<!-- end of faults -->\nafter\n")
    for rows in (["| a |", r"| \1 |"], ["| b |"]):
        put_into(page, {"faults": rows})
        between = "\n".join(rows)
        assert page.read_text() == f"before\n<!-- faults -->\n{between}\n<!-- end of faults -->\nafter\n"
    with pytest.raises(AssertionError, match="no place for the table of rot"):
        put_into(page, {"rot": []})


def test_the_page_has_a_place_for_every_table() -> None:
    for name in ("faults", "random faults", "bench"):
        assert f"<!-- {name} -->\n" in PAGE.read_text() and f"<!-- end of {name} -->" in PAGE.read_text()


@pytest.mark.parametrize(
    ("passed", "lost", "code"), [(True, 0, 0), (True, 1, 1), (False, 0, 1)], ids=["good", "lost", "failed"]
)
def test_the_command_prints_the_tables_and_ends_with_what_came_of_it(
    passed: bool,
    lost: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried: list[dict[str, str]] = []

    def run_tests(path: Path, *paths: str, **variables: str) -> bool:
        tried.append(variables)
        with path.open("a") as file:
            file.write(json.dumps({"fault": "rot", "tried": 5, "lost": lost}) + "\n")
        return passed

    monkeypatch.setattr(soak, "LEDGERS", tmp_path)
    monkeypatch.setattr(soak, "run_tests", run_tests)
    assert soak.main(["--minutes", "0"]) == code
    assert tried == [{}], "everything once, however short the time"
    assert f"| rot   |           5 |    {lost} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("passed", "lost", "paths", "why"),
    [
        (True, 0, [], None),
        (False, 0, [], "a test failed"),
        (True, 1, [], "something was lost"),
        (True, 0, ["tests/faults/test_rot.py"], r"only tests/faults/test_rot\.py was tried; give no paths"),
    ],
    ids=["whole", "failed", "lost", "some paths"],
)
def test_only_a_whole_soak_that_passed_is_written_down(
    passed: bool,
    lost: int,
    paths: list[str],
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_tests(path: Path, *paths: str, **variables: str) -> bool:
        lines = [{"fault": "rot", "tried": 5, "lost": lost}, *LINES[3:]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return passed

    page = tmp_path / "page.md"
    empty = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("faults", "random faults"))
    page.write_text(empty)
    monkeypatch.setattr(soak, "LEDGERS", tmp_path)
    monkeypatch.setattr(soak, "run_tests", run_tests)
    monkeypatch.setattr(soak, "PAGE", page)
    assert soak.main(["--write", *paths]) == (0 if passed and not lost else 1)
    assert (page.read_text() == empty) == (why is not None)
    said = capsys.readouterr().out
    assert re.search(f"nothing was written to .*{why}", said) if why else "nothing was written" not in said
