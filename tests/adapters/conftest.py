import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from object_store import bucket, open_storage, s3_endpoint

__all__ = ["bucket", "open_storage", "s3_endpoint"]
