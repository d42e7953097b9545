"""What MLflow costs a training that sends a point of each metric at every step, whatever state the server is in.

Steps are measured from when MLflow first took points or refused them; before that no variant differs.
"""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, pairwise, repeat
from pathlib import Path
from statistics import median, quantiles

from benchmarks.carried import points_sent
from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.trained import run, ticks, training
from tests.launchers.processes import Command
from tests.tracking.servers import Server
from tests.tracking.slow_proxy import SlowProxy

STEPS = 1250
HOLD_AT = 50  # warm by then; steps after it are measured
Place = Callable[[], AbstractContextManager[str]]  # where MLflow is meanwhile: gives its URI
QUANTITIES = [
    Quantity("mean step", "ms", 1000),
    Quantity("median step", "ms", 1000),
    Quantity("99th percentile of steps", "ms", 1000),
    Quantity("sent by the last step", "thousand points", 0.001, as_ratio=False),
    Quantity("from the last step to the exit, once", "s", as_ratio=False),
]


def measure(rounds: int) -> list[Row]:
    """In turns: no MLflow, a file, and a server that is up, down, frozen and slow."""
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder)) as server:
        places: dict[str, Place] = {
            "no tracking": lambda: nullcontext("null"),
            "sqlite": lambda: nullcontext("sqlite:///mlflow.db"),
            "server": lambda: nullcontext(server.uri),
            "server down": lambda: nullcontext("http://127.0.0.1:9"),
            "server frozen": lambda: _frozen(server),
            "server slow, 2 s an answer": lambda: _slow(server),
        }
        variants = {name: _variant(place) for name, place in places.items()}
        return rows("MLflow", in_turns(variants, rounds), QUANTITIES, baseline="no tracking")


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def _frozen(server: Server) -> Iterator[str]:
    server.signal(signal.SIGSTOP)
    try:
        yield server.uri
    finally:
        server.signal(signal.SIGCONT)
        time.sleep(2)  # to do what it was asked for meanwhile


@contextmanager
def _slow(server: Server) -> Iterator[str]:
    with SlowProxy(server.uri, delay_s=lambda batch: 2.0).serving() as proxy:
        yield proxy.uri


def _variant(place: Place) -> Callable[[], Sample]:
    """Only the first sample waits for the exit: it may take ten seconds, and about the same each time."""
    to_the_exit = chain([True], repeat(False))

    def sample() -> Sample:
        with place() as uri:
            return _sample(uri, to_the_exit=next(to_the_exit))

    return sample


def _sample(uri: str, *, to_the_exit: bool) -> Sample:
    held = [] if uri == "null" else [f"{{target: benchmarks.carried.HoldUntilCarried, step: {HOLD_AT}}}"]
    hooks = f"hooks=[{', '.join(['{target: benchmarks.trained.Clock}', *held])}]"
    sample = {}
    with training(f"tracking.uri={uri}", hooks, steps=STEPS) as one:

        def at_the_last_step(command: Command) -> None:
            one.wait_for_step(STEPS, timeout_s=150)
            sample["sent by the last step"] = float(points_sent(one.run))

        if to_the_exit:
            ended = run(one, meanwhile=at_the_last_step)
            sample["from the last step to the exit, once"] = ended - ticks(one)[-1].time
        else:
            at_the_last_step(one.start())
        times = [tick.time for tick in ticks(one)]
    return {**sample, **_of_steps(times[HOLD_AT:])}


def _of_steps(times: list[float]) -> Sample:
    """`times`: when each step ended. The first of them was under way while the training was held."""
    steps = [end - begin for begin, end in pairwise(times)]
    return {
        "mean step": sum(steps) / len(steps),
        "median step": median(steps),
        "99th percentile of steps": quantiles(steps, n=100)[98],
    }
