"""New files of a copy as a patch, in the words of git diff: what git does not know it shows no difference of."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path

_MOST_BYTES = 100_000  # of one file
_PLAIN_NAME = re.compile(r"[ !#-\[\]-~]+")  # others are quoted in a patch; they are in the copy


def patch_of_new(top: Path, names: Sequence[str]) -> bytes:
    """A patch that makes these files of the copy at `top`; links, large files and what is no text are left out."""
    return b"".join(_patch(top / name, name) for name in names if _PLAIN_NAME.fullmatch(name))


def _patch(path: Path, name: str) -> bytes:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
        return b""
    content = path.read_bytes()
    if b"\0" in content:
        return b""
    mode = "100755" if found.st_mode & stat.S_IXUSR else "100644"
    end = "\t" if " " in name else ""  # or a reader takes what follows a blank for a date
    lines = re.findall(rb"[^\n]*\n|[^\n]+", content)
    head = f"diff --git a/{name} b/{name}\nnew file mode {mode}\n"
    if lines:
        count = "" if len(lines) == 1 else f",{len(lines)}"
        head += f"--- /dev/null\n+++ b/{name}{end}\n@@ -0,0 +1{count} @@\n"
        if not lines[-1].endswith(b"\n"):
            lines[-1] += b"\n\\ No newline at end of file\n"
    return head.encode() + b"".join(b"+" + line for line in lines)
