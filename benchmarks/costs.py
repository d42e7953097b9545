"""What watching a run costs beside a step of 10 ms: 100 metrics at each step, and the heartbeats of 1 and 64 ranks.

A figure is the time that goes there in 10 ms of training; its ratio is the share of these 10 ms.

metrics       wall time of the training thread in `Journal.metrics` with 100 values, once a step
a heartbeat   wall time of the training thread in all that one rank says in a step, see BEATS
N ranks       the same, and the CPU time of the agent, which looks at N ranks' heartbeats and draws the progress
torchrun      the CPU time of one rank's watchdog thread, which looks at N ranks' heartbeats where no agent does
progress      the CPU time of the agent that reads what 100 metrics a step leave in the journal

Steps come every 10 ms as in a training; all of N ranks' heartbeats are written by another process meanwhile.
"""

import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.console import Console

from benchmarks.compared import HERE, middle
from benchmarks.frame import Sample, in_turns
from benchmarks.goals import Figure
from dist_trainer.launchers.hangs import HangWatch
from dist_trainer.launchers.processes import Worker
from dist_trainer.launchers.progress import Progress
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.heartbeat import Beat, Heartbeat, read_heartbeat
from dist_trainer.tracking.journal import Journal
from dist_trainer.tracking.silence import Silence

STEP_S = 0.01
STEPS = 400  # of a sample: some looks of each watcher, and some flushes of the journal
METRICS = 100
RANKS = (1, 64)
GOAL = 0.03
BEATS = (
    "data",
    "train",
    "read-ahead",
    "all-reduce",
    "update",
    "hooks",
)  # recorder.py, of a model without buffers
_AGENT_TICKS_S = 0.1  # agent.py
_WATCHDOG_LOOKS_S = 1.0  # watchdog.py
_TIMEOUT_S = 120.0
_ATTEMPT = 1
_PATIENCE_S = 60.0


def measure(rounds: int, *, steps: int = STEPS) -> list[Figure]:
    """Each kind of cost in turns."""
    variants: dict[str, Callable[[], Sample]] = {HERE: partial(training_thread, steps)}
    variants |= {f"{ranks}": partial(watchers, ranks, steps) for ranks in RANKS}
    samples = in_turns(variants, rounds)
    metrics, beats = middle(samples[HERE], "metrics"), middle(samples[HERE], "beats")
    figures = [
        _figure(f"{METRICS} metrics at every step", metrics),
        _figure(f"the progress of {METRICS} metrics a step, agent", middle(samples["1"], "progress")),
    ]
    for ranks in RANKS:
        who = "1 rank" if ranks == 1 else f"{ranks} ranks"
        agent, watchdog = (middle(samples[f"{ranks}"], name) for name in ("agent", "watchdog"))
        figures.append(_figure(f"heartbeats of {who}, written and watched by the agent", beats + agent))
        figures.append(_figure(f"heartbeats of {who}, written and watched under torchrun", beats + watchdog))
    return figures


def _figure(what: str, seconds_a_step: float) -> Figure:
    return Figure(what, "ms", 1000 * seconds_a_step, {}, None, seconds_a_step / STEP_S, GOAL)


def training_thread(steps: int) -> Sample:
    """Seconds a step that the training thread spends on metrics, and on its heartbeat."""
    values = {f"metric/{number}": number / 7 for number in range(METRICS)}
    spent = {"metrics": 0.0, "beats": 0.0}
    with _folder() as folder, ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal" / "rank-0.jsonl", attempt=_ATTEMPT, rank=0))
        heartbeat = Heartbeat(folder / "heartbeat" / "rank-0", rank=0, attempt=_ATTEMPT)
        stack.callback(heartbeat.close)
        for step in paced(steps):
            began = time.perf_counter()
            for phase in BEATS:
                heartbeat.beat(step, phase)
            written = time.perf_counter()
            journal.metrics(step, values)
            spent["beats"] += written - began
            spent["metrics"] += time.perf_counter() - written
    return {name: seconds / steps for name, seconds in spent.items()}


def watchers(ranks: int, steps: int) -> Sample:
    """CPU seconds in the time of a step that those spend who look at so many ranks."""
    with _folder() as folder, _beating(run := _run(folder), ranks) as writer:
        watchers = [
            _Watcher("agent", _AGENT_TICKS_S, _agent(run, ranks, writer)),
            _Watcher("watchdog", _WATCHDOG_LOOKS_S, _watchdog(run, ranks)),
            _Watcher("progress", _AGENT_TICKS_S, Progress(run, Console(file=io.StringIO())).tick),
        ]
        values = {f"metric/{number}": number / 7 for number in range(METRICS)}
        with Journal(run.journal_path(0), attempt=_ATTEMPT, rank=0) as journal:
            for step in paced(steps):
                journal.metrics(step, values)
                for watcher in watchers:
                    watcher.look_if_due()
    return {watcher.name: watcher.spent_s / steps for watcher in watchers}


@dataclass
class _Watcher:
    """Looks as often as it does in a training."""

    name: str
    every_s: float
    look: Callable[[], object]
    spent_s: float = 0.0
    looked_at: float = 0.0

    def look_if_due(self) -> None:
        if time.monotonic() - self.looked_at < self.every_s:
            return
        self.looked_at, began = time.monotonic(), time.thread_time()
        self.look()
        self.spent_s += time.thread_time() - began


def _agent(run: RunFolder, ranks: int, process: BaseProcess) -> Callable[[], object]:
    """An agent's look at its ranks; one process that is alive stands for all of theirs."""
    watch = HangWatch(run, _TIMEOUT_S)
    watch.begin()
    workers = [Worker(rank, process) for rank in range(ranks)]
    return lambda: watch.look(workers, _ATTEMPT)


def _watchdog(run: RunFolder, ranks: int) -> Callable[[], object]:
    """A rank's look at all, as training/watchdog.py takes it."""
    silence = Silence(_TIMEOUT_S)
    paths = [run.heartbeat_path(rank) for rank in range(ranks)]

    def look() -> object:
        beats: list[Beat] = [beat for beat in map(read_heartbeat, paths) if beat and beat.attempt == _ATTEMPT]
        return silence.look(beats, time.monotonic(), watched={0})

    return look


def paced(steps: int) -> Iterator[int]:
    """Steps of 10 ms; what is done in one is a part of it."""
    due = time.monotonic()
    for step in range(steps):
        yield step
        due += STEP_S
        time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def _beating(run: RunFolder, ranks: int) -> Iterator[BaseProcess]:
    """A process that writes the heartbeats of all these ranks at every step."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_beat, args=(run, ranks, os.getpid()), daemon=True)
    process.start()
    try:
        _wait_until_there(run, ranks)
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def _beat(run: RunFolder, ranks: int, parent: int) -> None:
    hearts = [Heartbeat(run.heartbeat_path(rank), rank=rank, attempt=_ATTEMPT) for rank in range(ranks)]
    step = 0
    while os.getppid() == parent:
        step += 1
        for heart in hearts:
            heart.beat(step, "train")
        time.sleep(STEP_S)


def _wait_until_there(run: RunFolder, ranks: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while read_heartbeat(run.heartbeat_path(ranks - 1)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no heartbeat in {_PATIENCE_S:.0f} s")
        time.sleep(0.02)


def _run(folder: Path) -> RunFolder:
    return RunFolder.create(folder / "run", "name: run\n", working_folder=folder)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield Path(folder)
