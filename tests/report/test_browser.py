"""What a real browser makes of the pages: the report's, and MLflow's own of a run. Run by `make test-browser`."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_trainer.data.samples import Digits
from dist_trainer.run_folder import RunFolder
from tests.launchers.processes import Command
from tests.report.runs import resumed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONFIG = """\
name: pictures
model: {target: dist_trainer.models.MLP, sizes: [64, 32, 10]}
data:
  train: {target: dist_trainer.data.Arrays, path: digits.npz, split: train}
  test: {target: dist_trainer.data.Arrays, path: digits.npz, split: test}
  split: {val: 0.1}
  global_batch_size: 60
loss: {target: torch.nn.CrossEntropyLoss}
metrics: {accuracy: {target: dist_trainer.training.metrics.Accuracy}}
optimizer: {target: torch.optim.SGD, lr: 0.5}
train: {epochs: 3, profile: {steps: [10, 20]}}
tracking: {log_every_steps: 2}
launch: {device: cpu}
"""
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of pictures, the first on three ranks, and the reports of one, of both, and of a resumed one."""
    folder = tmp_path_factory.mktemp("pages")
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        digits = Digits(split=split)  # type: ignore[arg-type]
        arrays[f"{split}_x"] = (digits.inputs.numpy() * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
        arrays[f"{split}_y"] = np.array(NAMES)[digits.targets]
    np.savez(folder / "digits.npz", **arrays)
    (folder / "pictures.yaml").write_text(CONFIG)
    call(folder, "train", "pictures.yaml", "--workers", "3")
    call(folder, "train", "pictures.yaml", "name=slower", "optimizer.lr=0.05", "tracking.uri=null")
    said = call(folder, "report", "pictures", "--predict", "test")
    assert said == "report: runs/pictures/report/index.html, 8 pictures beside it\n"
    call(folder, "report", "pictures", "slower", "--output", "both")
    resumed(folder, "hand-made")
    call(folder, "report", "hand-made")
    return folder


def call(folder: Path, *arguments: str) -> str:
    command = Command(sys.executable, "-m", "dist_trainer.cli", *arguments, folder=folder)
    assert command.finish(120) == 0, command.stdout + command.stderr
    return command.stdout


@dataclass
class Tab:
    """One page, and what it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path: Path) -> "Tab":
        self.page.goto(path.as_uri())
        return self

    def measure(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM.exists(), f"{CHROMIUM} is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens pages, and closes them all."""
    tabs: list[Tab] = []

    def new(width: int = 1280, **options: Any) -> Tab:
        tabs.append(Tab(browser.new_page(viewport={"width": width, "height": 900}, **options)))
        return tabs[-1]

    yield new
    for each in tabs:
        each.page.close()


NewTab = Callable[..., Tab]
PAGES = ["runs/pictures/report/index.html", "both/index.html", "runs/hand-made/report/index.html"]
SECTIONS = ["summary", "curves", "time", "attempts", "predictions", "configuration"]


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("path", PAGES)
def test_the_page_fits_any_screen_asks_for_nothing_and_shows_every_section(
    tab: NewTab, folder: Path, path: str, width: int
) -> None:
    shown = tab(width, offline=True).open(folder / path)
    assert shown.measure("document.documentElement.scrollWidth") <= width
    sections = SECTIONS + (["differences"] if path.startswith("both") else [])
    for section in sections:
        box = shown.page.locator(f"#{section}").bounding_box()
        assert box is not None and box["height"] > 40, section
    beyond = shown.measure(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, details, svg')"
        f" && e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in shown.requests if url.startswith("file:")]) == 1, "one file"
    assert shown.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_text_in_pictures_can_be_read(tab: NewTab, folder: Path, width: int) -> None:
    shown = tab(width).open(folder / PAGES[1])
    heights = shown.measure(
        "[...document.querySelectorAll('#curves svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 50 and min(heights) > 9


def test_two_runs_are_laid_over_each_other_in_two_colours(tab: NewTab, folder: Path) -> None:
    shown = tab().open(folder / PAGES[1])
    colours = shown.measure(
        "[...new Set([...document.querySelectorAll('#curves figure:first-child svg path')]"
        ".map(e => getComputedStyle(e)).filter(s => s.fill === 'none' && parseFloat(s.strokeWidth) > 1)"
        ".map(s => s.stroke))]"
    )
    assert len(colours) == 2
    table = shown.page.locator("#differences table").inner_text()
    assert re.search(r"optimizer.lr\s+0.5\s+0.05", table)


def test_the_colours_follow_a_dark_screen(tab: NewTab, folder: Path) -> None:
    def look(scheme: str) -> list[str]:
        shown = tab(color_scheme=scheme).open(folder / PAGES[0])
        script = "[getComputedStyle(document.body).backgroundColor, getComputedStyle("
        script += "document.querySelector('#curves svg text')).fill]"
        found: list[str] = shown.measure(script)
        return found

    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    (light, light_text), (dark, dark_text) = look("light"), look("dark")
    assert brightness(light) > 700 > 150 > brightness(light_text)
    assert brightness(dark_text) > 700 > 150 > brightness(dark)


def test_pictures_of_samples_are_there_with_words_for_who_cannot_see_them(tab: NewTab, folder: Path) -> None:
    shown = tab(390).open(folder / PAGES[0])
    found = shown.measure("[...document.images].map(e => [e.naturalWidth, e.alt, e.clientWidth])")
    assert len(found) == 24
    assert all(natural == 8 and clientwidth >= 60 for natural, _, clientwidth in found)
    assert all(re.fullmatch(r"row \d+, truth \w+, prediction \w+", alt) for _, alt, _ in found)
    assert shown.page.locator(".matrix tbody tr").count() == 11


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_a_phone_cuts_off_shows_a_shade_where_it_goes_on(
    tab: NewTab, folder: Path, scheme: str
) -> None:
    shown = tab(320, color_scheme=scheme).open(folder / PAGES[0])
    matrix = shown.page.locator(".scroll", has=shown.page.locator(".matrix"))

    def brightness_at_its_right_edge() -> float:
        pixels = np.asarray(Image.open(io.BytesIO(matrix.screenshot())).convert("L"))
        return float(np.median(pixels[:, -2:]))

    before = brightness_at_its_right_edge()
    matrix.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    after = brightness_at_its_right_edge()
    assert after > 250 if scheme == "light" else after < 40, "the card's own"
    assert abs(before - after) > 30


@pytest.mark.parametrize("path", PAGES)
def test_it_can_be_printed(tab: NewTab, folder: Path, path: str) -> None:
    shown = tab(718).open(folder / path)
    shown.page.emulate_media(media="print", color_scheme="dark")
    assert shown.measure("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.measure("document.documentElement.scrollWidth") <= 718
    document = shown.page.pdf(format="A4")
    assert document.startswith(b"%PDF") and 2 <= document.count(b"/Type /Page\n") <= 20


@pytest.fixture(scope="module")
def mlflow(folder: Path) -> Iterator[Any]:
    from tests.tracking.servers import Server  # imports mlflow, which takes seconds

    server = Server(folder)  # on the file that the training wrote
    yield server.start()
    server.stop()


def test_mlflows_own_page_shows_the_run_with_its_curves_and_files(
    tab: NewTab, folder: Path, mlflow: Any
) -> None:
    run = RunFolder.open(folder / "runs" / "pictures")
    page = tab(1400).page
    page.set_default_timeout(60_000)
    base = f"{mlflow.uri}/#/experiments/1/runs/{run.info().mlflow_run_id}"
    page.goto(base)
    page.get_by_text("pictures").first.wait_for()
    for shown in ("optimizer.lr", "test/accuracy", str(run.status.results["test/accuracy"])):
        page.get_by_text(shown).first.wait_for()
    page.goto(f"{base}/model-metrics")
    page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
    for part in ("median", "accuracy"):
        page.get_by_text(part).first.wait_for()
    page.goto(f"{base}/artifacts")
    for shown in ("model", "code.json", "config.yaml"):
        page.get_by_text(shown, exact=True).first.wait_for()
    page.get_by_text("config.yaml").first.click()
    page.get_by_text("global_batch_size").first.wait_for()
