"""Says when torch compiles: a new shape, as of an epoch's short last batch, may take as long as the first step."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from dist_trainer.adapters.lazy_compiler import when_compiler_loads
from dist_trainer.tracking.heartbeat import Heartbeat


class _Beats:
    """Registered with the compiler from when it is there until the training is over."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._compiling = ExitStack()
        self._handler: Any = None
        self._is_over = False

    def register(self) -> None:
        if not self._is_over:
            from torch._dynamo.callback import callback_handler

            self._handler = callback_handler
            callback_handler.register_start_callback(self._begin)
            callback_handler.register_end_callback(self._end)

    def remove(self) -> None:
        self._is_over = True
        if self._handler is not None:
            self._handler.remove_start_callback(self._begin)
            self._handler.remove_end_callback(self._end)

    def _begin(self, told: Any) -> None:
        self._compiling.enter_context(self._heartbeat.waiting("compile"))

    def _end(self, told: Any) -> None:
        self._compiling.close()


@contextmanager
def compiling_beats(heartbeat: Heartbeat) -> Iterator[None]:
    """In this block a rank that compiles is in the phase `compile`, and in the one before again afterwards.

    Whoever compiles, train.compile or the model's own code: torch's compiler tells (torch._dynamo.callback). Where
    it was not imported, nothing here imports it.
    """
    beats = _Beats(heartbeat)
    when_compiler_loads(beats.register)
    try:
        yield
    finally:
        beats.remove()
