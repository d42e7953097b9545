"""The page and the command that writes it: what is on it, that nothing of a run can be more than text, and limits."""

import json
import os
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dist_trainer.checkpoint.choose import open_store
from dist_trainer.cli import app
from dist_trainer.config.schema import BestConfig, CheckpointConfig
from dist_trainer.report import facts
from dist_trainer.report.make import make
from dist_trainer.report.page import Page as MadePage
from dist_trainer.report.page import render
from dist_trainer.report.place import default_folder
from dist_trainer.run_folder import RunFolder, Status
from dist_trainer.tracking.journal import Journal
from tests.report.runs import NOW, end, finished, make_run, predicted, resumed, start, train
from tests.report.test_predictions import CLASSES

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac$ ${env:HOME} {{ 7191 * 7193 }}"


class Page(HTMLParser):
    """Elements, ids and words of a document; tags must close as they were opened."""

    VOID = ("meta", "link", "img", "br", "path", "rect", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words += data


def written(*runs: RunFolder) -> tuple[str, Page]:
    text = make(runs, default_folder(runs)).page.read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def text_of_three(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("three")
    whole = finished(folder, "one")
    pictures = np.random.default_rng(0).random((5, 1, 8, 8))
    predicted(whole, {**CLASSES, "sample_row": np.arange(5), "sample_input": pictures})
    return written(whole, finished(folder, "two", lr=0.2), resumed(folder, "three"))[0]


def test_every_section_is_there_and_the_document_is_well_formed(text_of_three: str) -> None:
    page = Page(text_of_three)
    ids = [value for name, value in page.attributes if name == "id" and value and value.isalpha()]
    assert ids[:7] == ["summary", "differences", "curves", "time", "attempts", "predictions", "configuration"]
    assert page.tags.count("h1") == 1 and page.tags.count("svg") > 10
    for words in (
        "3 runs: one, two, three",
        "optimizer.lr",
        "3 logged steps came after the checkpoint that a later attempt went on from",
        "measured in steps 11 to 20",
        "died without a word",
        "2 attempts",
        "data.test, 5 rows, by the checkpoint of step 200",
        "3 of 5 right, 60.0%.",
        "dist-trainer report two --predict test",
        "The phases of a step were not measured",
        time.strftime("Began, %Z"),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW - 100)),
    ):
        assert words in " ".join(page.words.split()), words
    zone = re.escape(time.strftime("%Z"))
    assert re.search(rf"Report of [\d-]+ [\d:]+ {zone}\s", page.words), (
        "a page is read elsewhere than it was made"
    )


def test_the_page_needs_nothing_runs_nothing_and_shows_no_secret(text_of_three: str) -> None:
    page = Page(text_of_three)
    assert not {"script", "iframe", "object", "form", "base"} & set(page.tags)
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert links and all(value.startswith(("data:", "#")) for value in links)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text_of_three and "hunter22secret" not in text_of_three
    styles = "".join(re.findall(r"<style.*?</style>", text_of_three, re.DOTALL))
    assert "url(" not in styles.replace("url(#", "") and "@import" not in styles
    assert all(value for name, value in page.attributes if name == "alt")


def test_whatever_a_run_is_called_or_says_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, config=f"name: {json.dumps(HOSTILE).replace('{', '{{').replace('}', '}}')}\n")
    start(run, 1, ago=50)
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        for step in (1, 2):
            journal.metrics(step, {f"val/{HOSTILE}": 1.0 / step, HOSTILE: 2.0, "../../etc/passwd": 1.0})
        journal.event("straggler", step=2, message=HOSTILE)
    end(run, 1, HOSTILE, ago=10, code=1, error=HOSTILE)
    predicted(run, CLASSES, classes=[HOSTILE, HOSTILE, "c"])
    moved = run.path.with_name("a<script>b&")
    shutil.move(run.path, moved)
    found = make([RunFolder(moved)], tmp_path / "page")
    text = found.page.read_text()
    page = Page(text)
    assert not {"script", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.words and "{{ 7191 * 7193 }}" in page.words
    assert str(7191 * 7193) not in text
    assert {path.parent for path in found.pictures} == {tmp_path / "page"}
    assert all(re.fullmatch(r"[\w-]+\.png", path.name) for path in found.pictures)


@pytest.mark.parametrize("how", ["gone", "binary"])
@pytest.mark.parametrize(
    "piece", ["journal/rank-0.jsonl", "attempts.jsonl", "status.json", "config.yaml", "run.json", "fence"]
)
def test_a_piece_that_is_torn_or_gone_is_told_and_the_rest_is_shown(
    tmp_path: Path, piece: str, how: str
) -> None:
    run = finished(tmp_path)
    path = run.path / piece
    if path.is_dir():
        shutil.rmtree(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\x00\xff\xfe{]" * 40)
    found = facts.read(RunFolder(run.path))
    assert found.problems or (how == "gone" and piece in ("attempts.jsonl", "status.json"))
    assert found.phases is not None
    page = Page(render(MadePage([found], [], 0, [None], [[]])))
    assert all(problem in page.words for problem in found.problems)


def test_a_run_that_lost_its_name_and_more_has_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path)
    for piece in ("run.json", "config.yaml", "journal/rank-0.jsonl"):
        (run.path / piece).unlink()
    said = json.loads(report("mine", "--json").stdout)["runs"][0]
    assert "run.json is missing" in said["problems"] and "config.yaml is missing" in said["problems"]
    assert said["results"] == {"test/accuracy": 0.975, "val/accuracy": 0.99}


def test_the_command_says_where_the_page_is_and_only_its_owner_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        start(make_run(tmp_path, name), 1, ago=10)
    train(RunFolder.open("runs/a"), 0, 20, ranks=1)
    assert report("a").stdout == "report: runs/a/report/index.html, 4 pictures beside it\n"
    assert report("b", "--output", "here").stdout == "report: here/index.html, 1 picture beside it\n"
    assert (
        default_folder([RunFolder.open("runs/a"), RunFolder.open("runs/b")]) == tmp_path / "runs/report-a+b"
    )
    folder = tmp_path / "runs" / "a" / "report"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def report(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 0, done.output
    return done


def test_what_cannot_be_reported_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, "a")

    def refused(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["report", *arguments])
        assert done.exit_code == 2, done.output
        return " ".join(done.stderr.split())

    assert "no run 'b'" in refused("b")
    assert refused("a", "runs/a") == "a run is named twice; a report shows each once"
    assert refused("a", "--predict", "all") == "--predict must be one of train, val, test, got 'all'"
    (run.path / "report").symlink_to(tmp_path)
    assert "is a symbolic link" in refused("a")


@pytest.mark.parametrize("name", ["index.html", "attempts.png"])
def test_what_no_report_wrote_is_not_written_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start(make_run(tmp_path, "a"), 1, ago=10)
    report("a", "--output", "docs")
    assert report("a", "--output", "docs").stdout == "report: docs/index.html, 1 picture beside it\n"
    (tmp_path / "docs" / name).write_text("<title>dist-trainer report</title>")
    before = {path: path.read_bytes() for path in (tmp_path / "docs").iterdir()}
    done = CliRunner().invoke(app, ["report", "a", "--output", "docs"])
    assert done.exit_code == 2 and " ".join(done.stderr.split()) == (
        f"docs/{name} is there already, and no report wrote it; move it away, or give another --output"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "docs").iterdir()} == before


def test_reports_of_other_runs_have_other_folders(tmp_path: Path) -> None:
    def folder(*names: str) -> str:
        return default_folder([RunFolder(tmp_path / name) for name in names]).name

    assert folder("a-b", "c") == "report-a-b+c" != folder("a", "b-c")
    long = [f"{letter * 63}" for letter in "abcd"]
    assert folder(*long, "x") != folder(*long, "y") and len(folder(*long, "x")) < 255


def test_what_is_no_letter_of_any_alphabet_stops_no_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with Journal(run.journal_path(0), attempt=1, rank=0) as journal:
        for step in (1, 2):
            journal.metrics(step, {"\ud800": 1.0 / step, "val/a\ud800b\nc": 1.0 / step})
        journal.event("straggler", step=2, message="\udfff")
    run.write_status(Status("failed", "\ud800", 2))
    moved = run.path.with_name(os.fsdecode(b"run\xff"))
    shutil.move(run.path, moved)
    page = make([RunFolder(moved)], tmp_path / "page").page
    assert {"no name", "a b c"} <= set(re.findall("<h3>(.*?)</h3>", page.read_text(encoding="utf-8")))


def test_no_final_metric_is_left_out(tmp_path: Path) -> None:
    runs = [finished(tmp_path, name) for name in ("one", "two")]
    for run in runs:
        run.write_status(Status("finished", step=200, results={f"test/m{n:02}": n + 0.5 for n in range(12)}))
    alone = " ".join(written(runs[0])[1].words.split())
    assert "Also test/m08 8.5, test/m09 9.5, test/m10 10.5, test/m11 11.5." in alone
    found = [facts.read(run) for run in runs]
    page = Page(render(MadePage(found, [], 0, [None, None], [[], []])))
    assert all(re.search(rf"test/m{n:02}\s*{n}.5\s*{n}.5\s", page.words) for n in range(12))


def test_the_best_checkpoint_is_that_of_all_and_how_many_there_are_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_MOST_CHECKPOINTS", 2)
    run = make_run(tmp_path)
    config = CheckpointConfig(keep_best=BestConfig(metric="val/accuracy", mode="max"))
    store = open_store(run, config, fence=run.new_fence({}))
    for step, value in ((1, 0.5), (2, 0.9), (3, "NaN"), (4, 0.7), (5, 0.6)):
        store.commit(step, {"training.json": b"{}"}, {"metrics": {"val/accuracy": value}})
    page = written(run)[1]
    assert "Checkpoints: 5, the newest 2 of them" in page.words
    assert re.search(r"Best checkpoint\s*step 2\s", page.words)


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text, page = written(run)
    assert "There is no curve yet" in page.words and "No attempt was begun yet." in page.words
    assert "There is one rank, so none is slower than another." in written(run)[1].words
    assert len(text) < 40_000
