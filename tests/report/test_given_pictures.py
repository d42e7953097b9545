"""Pictures that a hook put into a run's report folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from dist_trainer.report.given_pictures import files
from dist_trainer.report.make import make
from dist_trainer.report.place import default_folder
from tests.report.runs import finished, predicted
from tests.report.test_predictions import CLASSES


def put(folder: Path, *names: str) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in names:
        imsave(pictures / name, np.zeros((4, 4)))
    return pictures


def test_they_are_on_the_page_by_name_with_their_captions(tmp_path: Path) -> None:
    run = finished(tmp_path, "one")
    pictures = put(run.path / "report", "b.png", "a.png")
    (pictures / "captions.json").write_text(json.dumps({"a.png": "<b>the first</b>"}))
    text = make([run], default_folder([run])).page.read_text()
    assert text.index("&lt;b&gt;the first&lt;/b&gt;") < text.index(">b.png")
    assert text.count('src="data:image/png') == 2 and 'id="pictures"' in text


def test_a_page_without_any_has_no_section_of_them(tmp_path: Path) -> None:
    run = finished(tmp_path, "one")
    assert 'id="pictures"' not in make([run], default_folder([run])).page.read_text()


def test_more_than_forty_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number:03d}.png" for number in range(42)))
    shown, more = files(tmp_path)
    assert (len(shown), more) == (40, 2)


@pytest.mark.parametrize("how", ["link", "pipe", "text", "large", "captions"])
def test_what_is_no_picture_is_told_and_hides_nothing_else(how: str, tmp_path: Path) -> None:
    run = finished(tmp_path, "one")
    pictures = put(run.path / "report", "good.png")
    bad = pictures / "bad.png"
    if how == "link":
        bad.symlink_to("/etc/passwd")
    elif how == "pipe":
        os.mkfifo(bad)
    elif how == "text":
        bad.write_text("no picture")
    elif how == "large":
        bad.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(3 << 20))
    else:
        (pictures / "captions.json").write_text("[1]")
    found = make([run], default_folder([run]))
    assert len([said for said in found.runs[0].problems if said.startswith("report/pictures/")]) == 1
    assert found.page.read_text().count('alt="good.png"') == 1


@pytest.mark.parametrize("linked", ["report", "report/pictures"])
def test_nothing_is_read_through_a_folder_that_is_a_link(linked: str, tmp_path: Path) -> None:
    run = finished(tmp_path, "one")
    put(tmp_path / "elsewhere", "secret.png")
    predicted(run, CLASSES).rename(tmp_path / "elsewhere" / "predictions-test.npz")
    folder = run.path / linked
    if folder.is_dir():
        folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere" / linked.removeprefix("report").strip("/"))
    found = make([run], tmp_path / "page")
    assert not found.runs[0].pictures.shown and not found.runs[0].predictions
    said = f"{linked} cannot be read: {folder.name} is a symbolic link, and none is followed there"
    assert said in found.runs[0].problems


@pytest.mark.parametrize("how", ["link", "pipe", "folder"])
def test_predictions_that_are_no_plain_file_are_told(how: str, tmp_path: Path) -> None:
    run = finished(tmp_path, "one")
    path = predicted(run, CLASSES)
    if how == "link":
        path.rename(tmp_path / "theirs")
        path.symlink_to(tmp_path / "theirs")
    else:
        path.unlink()
        os.mkfifo(path) if how == "pipe" else path.mkdir()
    found = make([run], tmp_path / "page").runs[0]
    why = "is a symbolic link, and none is followed there" if how == "link" else "is no plain file"
    assert found.problems == [f"report/{path.name} cannot be read: {path.name} {why}"]
    assert found.predictions == []
