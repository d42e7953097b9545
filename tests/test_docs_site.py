"""`make docs`: the pages build without a warning, and need no network to be read."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Loads(HTMLParser):
    """What a page has a browser fetch when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == LOADS.get(tag) and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages: every link between them leads somewhere, and each page is in the navigation."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(120)
def test_each_page_is_built_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    for page in site.glob("*.html"):
        reader = Loads()
        reader.feed(page.read_text())
        assert len(reader.found) > 3, "a style, a script and an icon"
        for address in reader.found:
            assert "//" not in address, f"{page.name} fetches {address}"
            target = address.removeprefix("/") if page.name == "404.html" else address
            assert address.startswith("data:") or (site / target.partition("#")[0]).exists(), address
