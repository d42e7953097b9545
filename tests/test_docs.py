"""README.md and docs/: every command is run, every snippet checked, every link followed, every key explained.

Commands and scripts are run by `make examples`, one after another: a page builds on what the last one left.

All pages are read in one folder with the repository's configs/ and launch/. A comment on the line before a
fence says what the test does with it, where that isn't what a reader would do:

    <!-- not run: REASON -->          the block is shown only
    <!-- run: exit 2 -->              its last command ends with this code, not with 0
    <!-- run: with ARGUMENTS -->      these are added to the commands that have a configuration
    <!-- run: once for all pages -->  it has been run already, for all pages to build on
    <!-- run: on slurm -->            by `make test-slurm`, where there is one
    <!-- file: NAME -->               the block is a file of this name; with `run: python` it is run as well

What a console block shows below a command must be in the command's output, line by line and in this order;
numbers may differ, and `...` stands for any lines. /home/me/digits stands for the folder. YAML blocks
without a name are laid over configs/quickstart.yaml.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_trainer.config.editor_schema import dotted_keys
from dist_trainer.config.load import load_config
from tests import reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"(?P<said>(?:^<!--[^\n]*-->\n)*)^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]+\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e-?\d+)?k?")
EVERYWHERE = "/home/me/digits"
ON_SLURM = "on slurm"
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Block:
    """A fenced block and what is said before it."""

    kind: str
    text: str
    said: dict[str, str]

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command with the lines shown below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> list[Block]:
    found = []
    for match in FENCE.finditer(page.read_text()):
        comments = re.findall(r"<!-- (.*?) -->", match["said"])
        parts = [part.partition(": ") for comment in comments for part in comment.split("; ")]
        said = {key: value for key, _, value in parts if key in ("run", "not run", "file")}
        found.append(Block(match["kind"], match["text"], said))
    return found


@dataclass(frozen=True)
class Place:
    """The folder in which the pages are read, and what the quickstart printed in it."""

    folder: Path
    quickstart: str

    def run(self, command: str, *, code: int = 0) -> str:
        """What the command prints; it must end with this code."""
        environment = {name: os.environ[name] for name in os.environ if name != "OMP_NUM_THREADS"}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Every page's files, and the quickstart trained as the README says."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    for page in PAGES:
        for block in blocks(page):
            if "file" in block.said:
                (folder / block.said["file"]).write_text(block.text)
    empty = Place(folder, "")
    return Place(folder, empty.run("dist-trainer train configs/quickstart.yaml"))


def like(line: str) -> str:
    """The line without what differs from time to time: frames, numbers, and the plural that a number brings."""
    plain = NUMBER.sub("0", " ".join(re.sub(r"[│┌┐└┘─┬┴]+", " ", line).split()))
    return re.sub(r"\b0 (\w+)s\b", r"0 \1", plain)


def check_output(command: str, shown: list[str], printed: str) -> None:
    left = iter([like(line) for line in printed.splitlines()])
    may_skip = False
    for line in shown:
        if line == "...":
            may_skip = True
            continue
        wanted, _, rest = like(line).partition(" ...")
        found = next(
            (each for each in left if each == wanted or (rest == "" and each.startswith(wanted))), None
        )
        assert found is not None, f"{command}\ndoes not print: {line}\nbut:\n{printed}"
    assert may_skip or not shown or next(left, None) is None, (
        f"{command}\nprints more than is shown:\n{printed}"
    )


def test_a_line_is_like_itself_with_other_numbers() -> None:
    assert like("kill-rank  passed; 1 step and 0.4 s lost") == like(
        "kill-rank passed; 12 steps and 10 s lost"
    )
    assert like("kill-rank  passed; 1 step lost") != like("kill-rank  failed; 1 step lost")


@pytest.mark.examples
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_does_what_the_page_shows(page: Path, place: Place) -> None:
    for block in blocks(page):
        how = block.said.get("run", "")
        if block.kind != "console" or "not run" in block.said or how == ON_SLURM:
            continue
        code, added = re.search(r"exit (\d+)", how), re.search(r"with (.+)", how)
        *_, (last, _) = block.commands
        for command, shown in block.commands:
            if how == "once for all pages":
                printed = place.quickstart
            else:
                more = f" {added[1]}" if added and ".yaml" in command else ""
                printed = place.run(command + more, code=int(code[1]) if code and command == last else 0)
            check_output(command, [s.replace(EVERYWHERE, str(place.folder)) for s in shown], printed)


SCRIPTS = [(page, block) for page in PAGES for block in blocks(page) if block.kind == "python"]


@pytest.mark.examples
@pytest.mark.parametrize(("page", "block"), SCRIPTS, ids=lambda value: getattr(value, "name", ""))
def test_python_snippets_compile_and_run(page: Path, block: Block, place: Place) -> None:
    compile(block.text, str(page), "exec")
    if block.said.get("run") == "python":
        name = block.said.get("file", "snippet.py")
        (place.folder / name).write_text(block.text)
        assert place.run(f"python {name}")
    else:
        assert "file" in block.said, "a snippet is a file that a command uses, or is run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_snippets_are_configurations(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(page) if block.kind == "yaml"):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.text)
        is_whole = block.text.startswith("name:")
        base = [] if is_whole else [ROOT / "configs" / "quickstart.yaml"]
        load_config([*base, path])


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b(?:tests|configs|launch|docs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(r"`pytest (tests/[\w/]*)", text):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), f"{page.name} names {name}"


def test_the_reference_is_the_schema() -> None:
    match = reference.PART.search(reference.PAGE.read_text())
    assert match is not None
    assert match[0] == reference.reference(), "docs/configuration.md is old: make reference"
    for key in dotted_keys():
        if not key.endswith(".target") or key in ("model.target", "optimizer.target", "scheduler.target"):
            assert f"| `{key}` |" in match[0], key


def test_every_command_of_the_command_line_is_in_the_guide(tmp_path: Path) -> None:
    text = "".join(page.read_text() for page in PAGES)
    listed = Place(tmp_path, "").run("dist-trainer --help")
    names = re.findall(r"^│? ?(\w+) {2,}\w", listed, re.M)
    assert {"train", "evaluate", "predict", "sync", "config", "checkpoint", "data"} <= set(names)
    assert [name for name in names if f"dist-trainer {name}" not in text] == []
