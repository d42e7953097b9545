"""Where torch's own words about processes go: a file, without the formatter that takes seconds to import."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from dist_trainer.adapters.files import open_log


@contextmanager
def plain_log(path: Path) -> Iterator[None]:
    """Write what torch's agent logs to `path` meanwhile; its own formatter would import torch._dynamo."""
    stream = TextIOWrapper(open_log(path), write_through=True)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
        handler.close()
        stream.close()
