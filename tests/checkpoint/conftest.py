import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from object_store import bucket, open_storage, s3_endpoint

__all__ = ["bucket", "open_storage", "s3_endpoint"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith(("checkpoint-writer", "digest"))]
    assert not left
