"""How each of our processes begins: what it writes is for its user alone, and what it says holds no secret."""

import os
import sys
import traceback
from types import TracebackType

from dist_trainer.config.redact import redact

_UMASK = 0o077


def keep_private() -> None:
    """For the `main` of a process of ours; those that come of it inherit the umask."""
    os.umask(_UMASK)
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
