"""What of a command line is a file of a configuration, and what a single value over it."""

from collections.abc import Sequence
from pathlib import Path


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and single values: what has an equals sign and is no file is a single value."""
    values = [text for text in arguments if "=" in text and not _is_there(text)]
    return [text for text in arguments if text not in values], values


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a file's name
        return False
