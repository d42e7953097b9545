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
from tests.report.runs import finished


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
