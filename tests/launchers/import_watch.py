"""As sitecustomize.py on PYTHONPATH: records who imports the heavy modules, and from when to when."""

import json
import os
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType


class Watch:
    """A finder that finds nothing itself: it times the first import of each heavy module."""

    heavy = ("torch", "torch._dynamo", "mlflow")

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.heavy or self.busy:
            return None
        import importlib.util

        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return spec
        execute, begin = spec.loader.exec_module, time.time()

        def timed(module: ModuleType) -> None:
            execute(module)
            line = json.dumps({"module": name, "pid": os.getpid(), "begin": begin, "end": time.time()})
            with open(os.environ["IMPORT_RECORD"], "a") as record:  # noqa: PTH123
                record.write(line + "\n")

        spec.loader.exec_module = timed
        return spec


if "IMPORT_RECORD" in os.environ:
    sys.meta_path.insert(0, Watch())
