"""What one rank spends on what must not grow with their number: measured inside of a real training, by a hook.

Every quantity but memory is CPU time of the whole process, threads included, so that waiting costs nothing.
"""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dist_trainer.training.hooks import Hook
from dist_trainer.training.snapshot import capture
from dist_trainer.training.stop import Agreement, Stop
from dist_trainer.training.trainer import Trainer

METRICS = {f"metric/{number}": number / 7 for number in range(10)}
AT_STEPS = range(10, 60, 10)  # all else is over by then; one measurement at each of them
CALLS = 200
EXCHANGES = 50


class Meter(Hook):
    """Each rank writes `rank-N.json` at the end: what it spent, by quantity; bytes or seconds of CPU."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    def on_step(self, trainer: Trainer, step: int, result: Any) -> None:
        if not self._samples:  # a worker's CPU time begins with its fork
            self._note("start-up", time.process_time())
        if step in AT_STEPS:
            self._measure(trainer, step)

    def _measure(self, trainer: Trainer, step: int) -> None:
        attempt = trainer.attempt
        if attempt.is_rank_zero:
            self._note(
                "journal, a point of 10 metrics", cpu_s(lambda: attempt.journal.metrics(step, METRICS), CALLS)
            )
        self._note("journal, an event", cpu_s(lambda: attempt.journal.event("measured", step=step), CALLS))
        self._note("heartbeat", cpu_s(lambda: attempt.heartbeat.beat(step, "hooks"), CALLS))
        agreement = Agreement(attempt.group, lambda: Stop.NONE, first_step=step)
        exchange_s = cpu_s(lambda: agreement.now(step), EXCHANGES)
        self._note("stop agreement, an exchange a second of its interval", exchange_s / agreement.every_s)
        self._note("checkpoint", cpu_s(lambda: _save(trainer, step), 1))
        attempt.group.barrier()  # the next steps do not begin while another rank still measures
        for name, value in memory_bytes().items():
            self._note(name, value)

    def _note(self, quantity: str, value: float) -> None:
        self._samples.setdefault(quantity, []).append(value)

    def on_end(self, trainer: Trainer, result: Any) -> None:
        found = {quantity: median(values) for quantity, values in self._samples.items()}
        Path(f"rank-{trainer.attempt.group.rank}.json").write_text(json.dumps(found))


def _save(trainer: Trainer, step: int) -> None:
    """A save as the Trainer makes it, waited for: its writer's thread is a part of what it costs."""
    progress = {"step": step, **trainer.evaluations.state_dict()}
    size = trainer.attempt.group.world_size

    def state() -> Any:
        return capture(trainer.parts, trainer.saves, progress, world_size=size)

    trainer.saves.save(step, state, {}, last=True)


def cpu_s(call: Callable[[], object], times: int) -> float:
    """CPU seconds of the process in one call."""
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def memory_bytes() -> dict[str, float]:
    """Resident, and with shared pages divided by who shares them (proc(5): smaps_rollup)."""
    text = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(Rss|Pss): +([0-9]+) kB", text, re.MULTILINE))
    return {"memory, resident": 1024.0 * int(found["Rss"]), "memory, its share": 1024.0 * int(found["Pss"])}
