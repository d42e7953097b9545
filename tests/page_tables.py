"""Puts tables that were measured into docs/reliability.md, each between its own two comments."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def put_into(path: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->` by each table's lines."""
    page = path.read_text()
    for name, lines in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.S)
        found = marked.search(page)
        assert found, f"{path} has no place for the table of {name}"
        text = "".join(f"{line}\n" for line in lines)
        page = page[: found.end(1)] + text + page[found.start(2) :]
    path.write_text(page)
