"""Defers torch's compiler, `torch._dynamo`, until something needs it: half as much time again as torch itself.

Every optimizer and every DistributedDataParallel imports it, only to be told that nothing is compiled. A module in
its place answers those questions, and becomes the real one, the same object, at the first other use: torch.compile,
`import torch._dynamo.config`, any other name of it. What torch asks for differs between its releases; a question
that is not known here costs the import, and nothing else.
"""

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_loader
from threading import RLock
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
COMPILES_VARIABLE = "DIST_TRAINER_COMPILES"  # tells a forkserver that its workers will need it
_LOCK = RLock()
_CACHED = "__dynamo_disable"  # where torch._disable_dynamo keeps what it was given for a function


class _Deferred(ModuleType):
    """The compiler until it is needed. Its own attributes are those that torch asks for where nothing compiles."""

    _until_loaded: list[Callable[[], None]]
    _not_disabled: list[Any]
    _is_loading: bool
    trace_rules: Any
    utils: Any

    def __getattr__(self, name: str) -> Any:
        _load(self)
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return vars(self)[name]


def defer() -> None:
    """From here on the compiler is imported when it is needed; nothing happens where it already is."""
    if COMPILER in sys.modules or (spec := find_spec(COMPILER)) is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    asked: list[Any] = []

    # who imported one of these by name before the compiler was there keeps it, so each becomes the real one too
    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if isinstance(module, _Deferred) and fn is not None and options == {"wrapping": False}:
            asked.append(fn)  # a function of torch's own
            return fn
        _load(module)
        return module.disable(fn, recursive, **options)

    def graph_break(msg: str = "") -> None:
        if not isinstance(module, _Deferred):
            module.graph_break(msg)

    vars(module).update(
        _until_loaded=[],
        _not_disabled=asked,
        _is_loading=False,
        disable=disable,
        graph_break=graph_break,
        trace_rules=SimpleNamespace(clear_lru_cache=lambda: None),
        utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"),
    )
    sys.modules[COMPILER] = module
    sys.modules["torch"]._dynamo = module  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _PartFinder(module))


def when_compiler_loads(call: Callable[[], None]) -> None:
    """Call now, or as soon as the compiler is there; never if it is neither there nor deferred."""
    module = sys.modules.get(COMPILER)
    if isinstance(module, _Deferred):
        module._until_loaded.append(call)
    elif module is not None:
        call()


def _load(module: ModuleType) -> None:
    """Make a deferred module the real one. Another thread that asks meanwhile waits for it."""
    with _LOCK:
        if not isinstance(module, _Deferred) or module._is_loading:
            return
        module._is_loading = True
        calls, asked = module._until_loaded, module._not_disabled
        for part in ("trace_rules", "utils"):
            vars(module).pop(part, None)  # its import makes them
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _PartFinder)]
        assert module.__spec__ is not None and module.__spec__.loader is not None
        try:
            module.__spec__.loader.exec_module(module)
        finally:
            module._is_loading = False
        del module._until_loaded, module._not_disabled, module._is_loading
        object.__setattr__(module, "__class__", ModuleType)
        for function in asked:  # from here on the compiler has to leave them out, and asks again
            vars(function).pop(_CACHED, None)
        for call in calls:
            call()


class _PartFinder(MetaPathFinder):
    """Finds `torch._dynamo.config` and the like: what a deferred module's parts are, its import has to say."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{COMPILER}."):
            return None
        _load(self._module)
        part = sys.modules.get(fullname)
        return spec_from_loader(fullname, _Imported(part)) if part is not None else None


class _Imported(Loader):
    """Hands out a part that its package imported, which must not run a second time."""

    def __init__(self, part: ModuleType) -> None:
        self._part, self._spec = part, part.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._part

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
