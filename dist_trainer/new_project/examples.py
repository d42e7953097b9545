"""The examples that a project can start from: the YAML files of configs/, which the wheel carries."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config.near import did_you_mean
from dist_trainer.errors import UsageError

_FOLDER = Path(__file__).parent / "configs"  # in the source tree a link to the one that everybody reads
_COMMAND = "#   "  # in the comment at the head of an example; those that do not train make its data
_SENTENCE = re.compile(r".*?[.](?=\s+[A-Z]|\s*$)")
_LINE = 78


@dataclass(frozen=True)
class Example:
    """One of them, as it is copied: its commands are for the folder that it lies in."""

    name: str
    text: str

    @property
    def run(self) -> str:
        """The name of its run."""
        found = re.search(r"^name: *(\S+)", self.text, re.MULTILINE)
        return found[1] if found else self.name

    @property
    def about(self) -> str:
        """The first sentence of its comment."""
        words = " ".join(line[2:] for line in self._head() if not line.startswith(_COMMAND))
        found = _SENTENCE.match(words)
        return found[0] if found else words

    @property
    def prepares(self) -> tuple[str, ...]:
        """The commands that make its data; none where it brings its own."""
        commands = (line.removeprefix(_COMMAND) for line in self._head() if line.startswith(_COMMAND))
        return tuple(each for each in commands if not each.startswith("dist-trainer train"))

    def _head(self) -> Iterator[str]:
        for line in self.text.splitlines():
            if not line.startswith("#"):
                return
            yield line


def examples() -> list[Example]:
    """All of them, by name."""
    return [_read(path) for path in sorted(_FOLDER.glob("*.yaml"))]


def find_example(name: str) -> Example:
    """The example of that name, with .yaml or without. UsageError names those that there are."""
    known = {each.name: each for each in examples()}
    wanted = name.removesuffix(".yaml")
    if wanted not in known:
        raise UsageError(
            f"--example {name}: there is no such example{did_you_mean(wanted, known)}\n{listing(known.values())}"
        )
    return known[wanted]


def listing(found: Iterable[Example]) -> str:
    """A line on each, or a few where its sentence is long."""
    known = list(found)
    width = 2 + max((len(each.name) for each in known), default=0)
    return "\n".join(
        textwrap.fill(
            each.about, _LINE, initial_indent=f"{each.name:<{width}}", subsequent_indent=" " * width
        )
        for each in known
    )


def _read(path: Path) -> Example:
    return Example(path.stem, path.read_text(encoding="utf-8").replace("configs/", ""))
